from __future__ import annotations

import os
import subprocess
import sys

import pytest

from milseg.annotations import FORMATS
from milseg.commands import catalog
from milseg.data.source_table import SOURCES
from milseg.models.backbone_table import BACKBONES
from milseg.refine import REFINERS, find_refiner
from milseg.rules import RULES
from milseg.training.recipes import RECIPES
from milseg.utils.registry import load_object

HEAVY = {"torch", "torchvision", "numpy", "PIL", "matplotlib", "sklearn", "skimage"}


def test_the_listing_is_the_tables_that_do_the_work() -> None:
    text = catalog.listing()
    for table in (BACKBONES, RULES, REFINERS, RECIPES, SOURCES, FORMATS):
        for name, row in table.items():
            assert f"\n  {name} " in text
            assert f" {row.about}\n" in f"{text}\n"


def test_a_row_that_is_added_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REFINERS, "new", REFINERS["crf"])
    assert "\n  new " in catalog.listing()


def test_every_row_names_something_that_can_be_loaded() -> None:
    for row in BACKBONES.values():
        assert callable(load_object(row.where))
        assert callable(load_object(row.parts))
        assert (row.weights is None) == (not row.published)
    assert all(callable(row.load()) for row in SOURCES.values())
    assert all(callable(find_refiner(name)) for name in REFINERS)


@pytest.mark.parametrize("words", ["list", "--help", "train --help", "predict --help"])
def test_it_answers_without_loading_anything_heavy(words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "milseg", *words.split()],
        capture_output=True,
        text=True,
        timeout=280,
        check=True,
        env={**os.environ, "COLUMNS": "100"},
    )
    assert "mobilenet_v2" in done.stdout or words == "--help" or words == "predict --help"
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "milseg" in loaded
    assert loaded.isdisjoint(HEAVY)
