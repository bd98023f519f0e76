"""Model folders on the Hugging Face hub, by the package `huggingface_hub` (the extra `hub`).

A model repository there is a model folder as it is: `model.safetensors`, `config.yaml`, `labels.json`, and the card
README.md, whose front matter the hub reads. `hf://OWNER/NAME` stands for one wherever a model folder is asked for.
"""

from __future__ import annotations

import importlib
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from milseg._version import __version__
from milseg.errors import UserError
from milseg.inference.model_folder import FILES, ModelSpec, load_model
from milseg.utils.files import check_writable, refuse_existing, write_text
from milseg.utils.yaml import parse_yaml

CARD = "README.md"
# Fields of a card's front matter that say what the repository holds.
FIELDS = {"library_name": "milseg", "pipeline_tag": "image-segmentation"}
TAGS = ("weakly-supervised", "multiple-instance-learning")

_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
# A path made of the address has one slash where there were two.
_ADDRESS = re.compile(rf"hf:/{{1,2}}({_PART}/{_PART})(?:@([\w./-]+))?")


def push_to_hub(
    folder: Path | str,
    repo_id: str,
    *,
    license: str | None = None,
    private: bool = True,
    message: str = "Upload a milseg model",
) -> str:
    """Upload a model folder as a model repository, made where it is missing; returns its address for `load`.

    The model and its card go up, and nothing else of the folder: no sample, checkpoint or record of the training.
    Log in first with `hf auth login`, or set HF_TOKEN.

    Args:
        repo_id: OWNER/NAME.
        license: the card's, as the hub names it ("mit", "cc-by-4.0"); None keeps what the card says.
        private: of a repository that is made now.

    Raises:
        UserError: no model folder, a name that cannot be, no `huggingface_hub`, or a refusal of the hub.
    """
    _check_id(repo_id)
    hub = _hub()
    with tempfile.TemporaryDirectory() as name:
        layout = save_to_hub_layout(folder, Path(name) / "model", license=license)
        _ask(hub.create_repo, repo_id, "made", repo_type="model", private=private, exist_ok=True)
        _ask(
            hub.upload_folder,
            repo_id,
            "uploaded",
            folder_path=str(layout),
            repo_type="model",
            commit_message=message,
            allow_patterns=[*FILES, CARD],
        )
    return f"hf://{repo_id}"


def from_hub(repo_id: str, *, revision: str | None = None) -> Path:
    """Download a model repository, or find it in the hub's cache; returns its folder, for `milseg.load`.

    Only the files of a model folder and its card are fetched.

    Args:
        revision: branch, tag or commit; None takes the newest.

    Raises:
        UserError: a name that cannot be, no `huggingface_hub`, no such repository, or no network.
    """
    _check_id(repo_id)
    found = _ask(
        _hub().snapshot_download,
        repo_id,
        "downloaded",
        repo_type="model",
        revision=revision,
        allow_patterns=[*FILES, CARD],
        library_name="milseg",
        library_version=__version__,
    )
    return Path(found)


def local_folder(place: Path | str) -> Path:
    """A model folder on this machine: `hf://OWNER/NAME` or `hf://OWNER/NAME@REVISION` is downloaded.

    >>> str(local_folder("runs/mine"))
    'runs/mine'

    Raises:
        UserError: as `from_hub`.
    """
    text = place.as_posix() if isinstance(place, Path) else place
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text)
    if scheme is None or (scheme[0] != "hf:/" and Path(place).exists()):
        return Path(place)
    if scheme[0] != "hf:/":
        raise UserError(
            f"{text}: no model can be read from such an address; expected a folder, or hf://OWNER/NAME"
        )
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise UserError(
            f"{text}: no address of a model; expected hf://OWNER/NAME, or hf://OWNER/NAME@REVISION"
        )
    return from_hub(match[1], revision=match[2])


def save_to_hub_layout(folder: Path | str, out: Path, *, license: str | None = None) -> Path:
    """Copy a model folder to an empty one as a model repository of the hub holds it; returns `out`.

    The card keeps its text and gets the front matter that it lacks; without one it is written from the settings.

    Raises:
        UserError: `folder` holds no model that can be loaded, or `out` holds files.
    """
    source = Path(folder)
    _, spec = load_model(source)
    refuse_existing(out)
    check_writable(out)
    for name in FILES:
        shutil.copyfile(source / name, out / name)
    text = (source / CARD).read_text(encoding="utf-8") if (source / CARD).is_file() else _card(spec)
    write_text(out / CARD, with_front_matter(text, license=license))
    return out


def with_front_matter(text: str, *, license: str | None = None) -> str:
    """A card whose YAML front matter has the library, the task and the tags; what is there already stays.

    >>> print(with_front_matter("# Cats", license="mit"))
    ---
    library_name: milseg
    pipeline_tag: image-segmentation
    tags:
    - weakly-supervised
    - multiple-instance-learning
    license: mit
    ---
    <BLANKLINE>
    # Cats

    Raises:
        UserError: front matter that is no YAML.
    """
    match = re.match(r"---\r?\n(.*?)\r?\n?---[ \t]*(?:\r?\n|$)", text, flags=re.DOTALL)
    try:
        given = parse_yaml(match[1]) if match else None
    except ValueError as error:
        raise UserError(f"{CARD}: its front matter is no YAML ({error}); mend it, or take it out") from None
    if given is not None and not isinstance(given, dict):
        raise UserError(
            f"{CARD}: its front matter is {str(given)[:60]!r}; expected fields such as license: mit"
        )
    tags = (given or {}).get("tags") or []
    tags = [tags] if isinstance(tags, str) else list(tags)
    fields = {**FIELDS, **(given or {}), "tags": [*tags, *(tag for tag in TAGS if tag not in tags)]}
    if license is not None:
        fields["license"] = license
    body = (text[match.end() :] if match else text).lstrip("\r\n")
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---\n\n{body}"


def _card(spec: ModelSpec) -> str:
    names = ", ".join(name for name in spec.classes if name != "background")
    return (
        f"# {names}\n\nA {spec.backbone} that masks {names}, made with milseg {spec.milseg_version}. What chose its "
        f"weights: {spec.supervision}{f' ({spec.tags_from})' if spec.tags_from else ''}.\n\n"
        "    milseg predict PHOTOS --model hf://OWNER/NAME --out MASKS\n"
    )


def _check_id(repo_id: str) -> None:
    if re.fullmatch(rf"{_PART}/{_PART}", repo_id) is None:
        raise UserError(f"{repo_id!r}: no name of a repository; expected OWNER/NAME, as in me/cats")


def _hub() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError:
        raise UserError(
            'models on the Hugging Face hub need the package huggingface_hub; install it with pip install "milseg[hub]"'
        ) from None


def _ask(function: Callable[..., Any], repo_id: str, done: str, **arguments: Any) -> Any:
    """Call the hub; what it refuses is a user's mistake."""
    errors = importlib.import_module("huggingface_hub.errors")
    # Its own errors are these; a connection that fails is the HTTP library's, which it passes on by this name.
    refusals = (OSError, ValueError, getattr(errors, "HTTPError", OSError))
    try:
        return function(repo_id=repo_id, **arguments)
    except refusals as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"hf://{repo_id}: could not be {done} ({reason}); look at the name, the network, and whether you are "
            "logged in (hf auth login)"
        ) from None
