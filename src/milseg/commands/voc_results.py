"""`milseg voc-results`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from milseg.config import VocResultsOptions
from milseg.data.bags import BagSet, load_photo
from milseg.data.image import UInt8
from milseg.data.masks import voc_results as write_voc_results
from milseg.data.sources.voc import read_voc
from milseg.inference.hub import local_folder
from milseg.inference.model_folder import load_model
from milseg.inference.score_map import segment
from milseg.models.fcn import FCN
from milseg.utils.devices import pick_device
from milseg.utils.files import check_writable, refuse_existing


def voc_results(options: VocResultsOptions) -> None:
    """`milseg voc-results`."""
    model, spec = load_model(local_folder(options.model))
    bags = read_voc(options.root, options.split, year=options.year, classes=spec.classes[1:])
    refuse_existing(options.out, overwrite=options.overwrite)
    check_writable(options.out)
    model.to(pick_device(options.device))
    archive = write_voc_results(
        _masks(model, bags),
        options.out,
        ids=[bag.name for bag in bags.bags],
        classes=spec.classes,
        competition=options.competition,
        split=options.split,
    )
    print(f"{len(bags)} masks in {archive}")


def _masks(model: FCN, bags: BagSet) -> Iterator[tuple[str, UInt8]]:
    for bag in tqdm(bags.bags, desc=f"predict {bags.name}", unit="photo"):
        yield bag.name, np.asarray(segment(model, load_photo(bag)))
