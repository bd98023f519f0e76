"""What can be said of tags alone: which tell nothing apart, and whether there is anything to learn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from milseg.data.bags import ABSENT, BACKGROUND, PRESENT, UNKNOWN, BagSet

NEARLY_ALL = 0.95

Tags = NDArray[np.int8]  # [bags, classes], the background left out


def names_without_background(bag_set: BagSet) -> tuple[str, ...]:
    """The classes that have tags."""
    return bag_set.classes[1:] if _has_background(bag_set) else bag_set.classes


def _has_background(bag_set: BagSet) -> bool:
    return bag_set.classes[BACKGROUND : BACKGROUND + 1] == ("background",)


def tag_matrix(bag_set: BagSet) -> Tags:
    """Tags int8 [bags, classes], the background left out."""
    matrix = np.array([bag.tags for bag in bag_set.bags], dtype=np.int8)
    matrix = matrix.reshape(len(bag_set), len(bag_set.classes))
    return matrix[:, 1:] if _has_background(bag_set) else matrix


def inseparable_tags(tags: Tags, names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Groups of tags that come together somewhere, and of which no bag has one present and another absent.

    >>> inseparable_tags(np.array([[1, 1, 0], [0, 0, 1], [1, 1, 1]], dtype=np.int8), ["cat", "tail", "dog"])
    (('cat', 'tail'),)
    """
    # Counts are exact in float64, whose product is far quicker than that of integers.
    present, absent = (tags == PRESENT).astype(np.float64), (tags == ABSENT).astype(np.float64)
    apart = present.T @ absent
    bound = (apart == 0) & (apart.T == 0) & (present.T @ present > 0)
    groups: list[list[int]] = []
    for i in range(len(names)):
        # With unknown tags the relation is not transitive: a group holds only tags that all go together.
        home = next((group for group in groups if all(bound[i, j] for j in group)), None)
        if home is None:
            groups.append([i])
        else:
            home.append(i)
    return tuple(tuple(names[i] for i in group) for group in groups if len(group) > 1)


def near_universal_tags(tags: Tags, names: Sequence[str]) -> dict[str, float]:
    """Tags on `NEARLY_ALL` or more of the bags of which it is known whether they have them."""
    present, known = (tags == PRESENT).sum(0), (tags != UNKNOWN).sum(0)
    shares = present / np.maximum(known, 1)
    return {
        name: float(share)
        for name, share in zip(names, shares, strict=True)
        if known.any() and share >= NEARLY_ALL
    }


def untrainable_reasons(tags: Tags, names: Sequence[str], readable: Sequence[int]) -> tuple[str, ...]:
    """Why training on these would teach nothing; empty where it may teach something."""
    if not len(tags):
        return ("there are no photos",)
    if len(readable) < 2:
        return (f"{len(readable) or 'none'} of the {len(tags):,} photos can be read; at least 2 are needed",)
    seen = tags[list(readable)]
    if not names or not (seen == PRESENT).any():
        unknown = names and (seen == UNKNOWN).all()
        return ("all tags are unknown" if unknown else "no photo has a tag",)
    informed = seen[(seen != UNKNOWN).any(1)]
    if len(np.unique(informed, axis=0)) == 1:
        here = ", ".join(name for name, tag in zip(names, informed[0], strict=True) if tag == PRESENT)
        return (f"every photo has the same tags ({here}); photos without them are needed to learn from",)
    return ()
