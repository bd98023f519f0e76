"""`milseg check`."""

from __future__ import annotations

import json
from dataclasses import replace

from milseg.config import CheckOptions
from milseg.data.sources.open import open_source_of
from milseg.errors import UserError
from milseg.training.check import check_source
from milseg.training.plan import LONGEST_SIDE
from milseg.training.recipes import find_recipe
from milseg.utils.devices import keep_freed_memory, pick_device


def check(options: CheckOptions) -> None:
    """`milseg check`; a report, and a UserError where training would teach nothing."""
    keep_freed_memory()  # as training does, whose time is estimated
    bags = open_source_of(options)
    device = pick_device(options.device)
    recipe = find_recipe("best" if "background" in bags.classes else "paper", options.backbone)
    if options.max_steps is not None:
        recipe = recipe.with_steps(options.max_steps)
    side = LONGEST_SIDE[device.type]
    recipe = replace(recipe, stages=tuple(replace(stage, longest_side=side) for stage in recipe.stages))
    report = check_source(
        bags,
        max_pixels=options.max_pixels,
        progress=not options.json,
        recipe=recipe,
        backbone=options.backbone,
        device=device,
        mapping=options.mapping,
    )
    print(json.dumps(report.to_json(), indent=2) if options.json else report.text())
    if report.untrainable_reasons:
        raise UserError("training would teach nothing: " + "; ".join(report.untrainable_reasons))
