"""Which bags are learned from, and which are kept to select models by."""

from __future__ import annotations

import numpy as np

from milseg.data.bags import PRESENT, BagSet
from milseg.errors import UserError


def hold_out(bags: BagSet, share: float, seed: int) -> tuple[BagSet, BagSet]:
    """Split bags into those to learn from and those to select by; a tag's last bag is kept to learn from.

    Raises:
        UserError: a share outside 0 to 0.5.
    """
    if not 0 <= share <= 0.5:
        raise UserError(f"--hold-out {share}: expected a share from 0 to 0.5")
    count = min(500, max(1, round(share * len(bags)))) if share and len(bags) > 1 else 0
    left = bags.tag_counts()
    held: set[int] = set()
    for i in np.random.RandomState(seed).permutation(len(bags)).tolist():
        pairs = zip(bags.classes, bags.bags[i].tags, strict=True)
        tags = [name for name, tag in pairs if tag == PRESENT]
        if len(held) < count and all(left[name] > 1 for name in tags):
            held.add(i)
            left.update({name: left[name] - 1 for name in tags})
    return bags.take(i for i in range(len(bags)) if i not in held), bags.take(sorted(held))
