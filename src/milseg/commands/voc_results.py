"""`milseg voc-results`."""

from __future__ import annotations

from collections.abc import Iterator

from tqdm import tqdm

from milseg.config import VocResultsOptions
from milseg.data.bags import BagSet, load_photo
from milseg.data.image import UInt8
from milseg.data.masks import voc_results as write_voc_results
from milseg.data.sources.voc import read_voc
from milseg.inference.segmenter import Segmenter, load
from milseg.utils.files import check_writable, refuse_existing


def voc_results(options: VocResultsOptions) -> None:
    """`milseg voc-results`."""
    segmenter = load(options.model, device=options.device)
    bags = read_voc(options.root, options.split, year=options.year, classes=segmenter.classes[1:])
    bags = bags.with_ranges(segmenter.spec.value_ranges)
    refuse_existing(options.out, overwrite=options.overwrite)
    check_writable(options.out)
    archive = write_voc_results(
        _masks(segmenter, bags),
        options.out,
        ids=[bag.name for bag in bags.bags],
        classes=segmenter.classes,
        competition=options.competition,
        split=options.split,
    )
    print(f"{len(bags)} masks in {archive}")


def _masks(segmenter: Segmenter, bags: BagSet) -> Iterator[tuple[str, UInt8]]:
    for bag in tqdm(bags.bags, desc=f"predict {bags.name}", unit="photo"):
        yield bag.name, segmenter.segment(load_photo(bag)).mask
