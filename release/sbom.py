"""`make sbom`: the software bill of materials of milseg as it is installed here, CycloneDX 1.6 as JSON.

    python release/sbom.py [--extras serve,export] [--out milseg.cdx.json]

Lists milseg and every package that it needs, directly or not, with the versions that are installed. Equal
environments give equal files: nothing in it depends on the clock.
"""

from __future__ import annotations

import argparse
import json
import re
import uuid
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

NAMESPACE = uuid.UUID("6f6d5c1e-6f0a-5d5e-9a55-0d2f6a1d7b11")  # of this kind of file, for its serial number


def plain(name: str) -> str:
    """A project's name as indexes write it.

    >>> plain("Scikit_Learn")
    'scikit-learn'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted(found: Distribution, extras: Iterable[str]) -> list[Requirement]:
    """What a package asks for in this environment, with these of its extras."""
    asked = [Requirement(line) for line in found.requires or []]
    names = ["", *extras]
    return [r for r in asked if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in names)]


def closure(name: str, extras: Iterable[str]) -> tuple[dict[str, Distribution], dict[str, list[str]]]:
    """All packages below one, by name, and what each depends on.

    Raises:
        SystemExit: one of them is not installed.
    """
    found: dict[str, Distribution] = {}
    edges: dict[str, set[str]] = {}
    waiting = [(name, tuple(extras))]
    met: set[tuple[str, tuple[str, ...]]] = set()
    while waiting:
        here, more = waiting.pop()
        if (here, more) in met:
            continue
        met.add((here, more))
        try:
            found.setdefault(here, distribution(here))
        except PackageNotFoundError:
            raise SystemExit(
                f"{here}: asked for, and not installed; pip install it, or leave its extra out"
            ) from None
        for requirement in wanted(found[here], more):
            below = plain(requirement.name)
            edges.setdefault(here, set()).add(below)
            waiting.append((below, tuple(sorted(requirement.extras))))
    return found, {here: sorted(edges.get(here, ())) for here in found}


def component(name: str, found: Distribution, kind: str) -> dict[str, Any]:
    """A package as CycloneDX says it."""
    about = found.metadata
    licence = about.get("License-Expression") or about.get("License") or ""
    reference = f"pkg:pypi/{name}@{found.version}"
    row: dict[str, Any] = {
        "type": kind,
        "bom-ref": reference,
        "name": name,
        "version": found.version,
        "purl": reference,
    }
    if about.get("License-Expression"):
        row["licenses"] = [{"expression": licence}]
    elif licence and "\n" not in licence:
        row["licenses"] = [{"license": {"name": licence}}]
    return row


def bill(extras: Iterable[str] = ()) -> dict[str, Any]:
    """The whole bill."""
    found, edges = closure("milseg", extras)
    references = {name: f"pkg:pypi/{name}@{package.version}" for name, package in found.items()}
    content: dict[str, Any] = {
        "metadata": {"component": component("milseg", found["milseg"], "application")},
        "components": [component(n, p, "library") for n, p in sorted(found.items()) if n != "milseg"],
        "dependencies": [
            {"ref": references[name], "dependsOn": [references[below] for below in edges[name]]}
            for name in sorted(found)
        ],
    }
    serial = uuid.uuid5(NAMESPACE, json.dumps(content, sort_keys=True))
    head = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
    }
    return {**head, **content}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--extras", default="", help="of milseg that are installed too, separated by commas")
    parser.add_argument("--out", type=Path, default=Path("milseg.cdx.json"))
    options = parser.parse_args()
    found = bill([extra for extra in options.extras.split(",") if extra])
    options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"{len(found['components'])} packages in {options.out}")


if __name__ == "__main__":
    main()
