"""The names a user types after `import milseg`."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import milseg

PROMISED = {
    *("Bag", "BagSet", "TrainConfig", "UserError", "__version__", "build_model", "evaluate_model", "fit"),
    *("load_model", "mil_loss", "read_digits", "read_voc", "segment"),
}


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    return done.stdout.strip()


def test_every_name_is_there_and_listed() -> None:
    assert set(milseg.__all__) >= PROMISED
    assert sorted(milseg.__all__) == sorted(set(milseg.__all__))
    for name in milseg.__all__:
        assert getattr(milseg, name) is not None, name
    assert set(dir(milseg)) >= set(milseg.__all__)


def test_each_name_is_the_one_where_it_is_defined() -> None:
    from milseg.config import TrainConfig
    from milseg.models.transfer import build_model
    from milseg.training.trainer import fit

    assert milseg.fit is fit
    assert milseg.build_model is build_model
    assert milseg.TrainConfig is TrainConfig
    # Found once, it is an ordinary attribute.
    assert vars(milseg)["fit"] is fit


def test_the_list_for_type_checkers_is_the_list() -> None:
    """What a type checker sees, what is looked up and `__all__` agree, homes included."""
    tree = ast.parse(Path(milseg.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == {name: f"milseg.{home}" for name, home in milseg._HOMES.items()}
    assert {*typed, "__version__"} == set(milseg.__all__)


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'milseg' has no attribute 'segmnet'"):
        milseg.segmnet  # noqa: B018
    with pytest.raises(ImportError, match="segmnet"):
        from milseg import segmnet  # noqa: F401


def test_import_is_light_and_submodules_still_work() -> None:
    heavy = "[m for m in ('torch', 'numpy', 'PIL', 'yaml') if m in sys.modules]"
    assert run(f"import sys, milseg; milseg.__version__; print({heavy})") == "[]"
    assert run(f"import sys, milseg; milseg.UserError, milseg.TrainConfig; print({heavy})") == "[]"
    assert run("import milseg.data.image; print(milseg.data.image.MAX_PIXELS > 0)") == "True"


def test_star_import() -> None:
    assert (
        run("from milseg import *; print(fit.__module__, UserError.__name__)")
        == "milseg.training.trainer UserError"
    )


def test_ten_lines_from_tags_to_masks() -> None:
    train = milseg.read_digits("train", 4)
    model, _ = milseg.build_model("tiny", train.classes, transfer="random")
    history = milseg.fit(model, train, milseg.TrainConfig(max_steps=2, batch_size=2), progress=False)
    assert len(history) == 2
    scores = milseg.evaluate_model(model, milseg.read_digits("val", 2), progress=False)["scores"]
    assert 0 <= scores.mean_iu <= 100
    photo = train.bags[0].photo
    assert milseg.segment(model, photo).shape == (64, 128)
