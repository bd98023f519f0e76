"""The bill of materials, the floors, and that version and changelog agree."""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import milseg

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "release"))

import floors
import sbom


def test_the_bill_names_every_dependency_as_it_is_installed() -> None:
    found = sbom.bill()
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    assert found["metadata"]["component"]["name"] == "milseg"
    listed = {row["name"]: row["version"] for row in found["components"]}
    for floor in (*floors.floors(), "torch==", "torchvision=="):
        name = floor.partition("==")[0]
        assert listed[name] == version(name), name
    assert {"sympy", "scipy"} <= listed.keys()  # what torch and scikit-learn ask for
    assert "pytest" not in listed
    references = {row["bom-ref"] for row in found["components"]} | {f"pkg:pypi/milseg@{version('milseg')}"}
    assert {row["ref"] for row in found["dependencies"]} == references
    assert all(set(row["dependsOn"]) <= references for row in found["dependencies"])
    assert found == sbom.bill()
    json.dumps(found, allow_nan=False)


def test_extras_add_what_they_name() -> None:
    pytest.importorskip("fsspec")
    pytest.importorskip("aiohttp")
    plain, more = (set(sbom.closure("fsspec", extras)[0]) for extras in ((), ("http",)))
    assert plain == {"fsspec"}
    assert {"aiohttp", "yarl"} <= more


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sbom, "wanted", lambda *_: [sbom.Requirement("no-such-package-of-milseg")])
    with pytest.raises(SystemExit, match="no-such-package-of-milseg: asked for, and not installed"):
        sbom.bill()


def test_every_dependency_has_a_floor() -> None:
    assert "numpy==1.26" in floors.floors()
    assert len(floors.floors()) >= 11


def test_the_version_is_semantic_and_in_the_changelog() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", milseg.__version__)
    assert version("milseg") == milseg.__version__
    assert f"## {milseg.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
