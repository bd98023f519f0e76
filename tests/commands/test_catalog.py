from __future__ import annotations

import os
import subprocess
import sys

import pytest

from milseg.annotations import FORMATS
from milseg.commands import catalog
from milseg.data.sources.open import SOURCES
from milseg.models.backbones import BACKBONES
from milseg.refine import REFINERS
from milseg.rules import RULES
from milseg.training.recipes import TRAIN_RECIPES

HEAVY = {"torch", "torchvision", "numpy", "PIL", "matplotlib", "sklearn", "skimage"}


def test_the_words_are_those_of_the_tables_that_do_the_work() -> None:
    assert list(catalog.BACKBONES) == list(BACKBONES)
    assert set(catalog.RULES) == set(RULES)
    assert list(catalog.RECIPES) == list(TRAIN_RECIPES)
    assert set(catalog.SOURCES) == set(SOURCES)
    assert {name: row.about for name, row in REFINERS.items()} == catalog.REFINERS


def test_the_strides_are_those_of_the_backbones() -> None:
    for name, row in BACKBONES.items():
        assert f"strides {', '.join(map(str, row.strides))}" in catalog.BACKBONES[name], name


def test_the_listing_names_everything() -> None:
    text = catalog.listing()
    for name in (*BACKBONES, *RULES, *REFINERS, *SOURCES, *FORMATS):
        assert f"\n  {name} " in text


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
