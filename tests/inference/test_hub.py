"""Models on the hub, without network: its functions are replaced by a folder."""

from __future__ import annotations

import importlib
import inspect
import shutil
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import milseg.inference.hub as hub
from milseg.cli import main
from milseg.data.image import open_mask
from milseg.errors import UserError
from milseg.inference.model_folder import ModelSpec, save_model
from milseg.inference.segmenter import load

SPEC = ModelSpec(backbone="tiny", classes=("background", "cat", "dog"), tags_from="tag file", longest_side=32)
FILES = ["README.md", "config.yaml", "labels.json", "model.safetensors"]


class Server:
    """Stands for the hub: repositories are folders, and every call is kept."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def create_repo(self, **given: Any) -> str:
        self.calls.append(("create_repo", given))
        (self.root / given["repo_id"]).mkdir(parents=True, exist_ok=given["exist_ok"])
        return str(given["repo_id"])

    def upload_folder(self, **given: Any) -> None:
        self.calls.append(("upload_folder", given))
        assert not (Path(given["folder_path"]) / "checkpoint.safetensors").exists()
        shutil.copytree(given["folder_path"], self.root / given["repo_id"], dirs_exist_ok=True)

    def snapshot_download(self, **given: Any) -> str:
        self.calls.append(("snapshot_download", given))
        source, here = self.root / given["repo_id"], self.root / "cache" / given["repo_id"]
        if not source.is_dir():
            raise OSError("404 Client Error. Repository Not Found")
        here.mkdir(parents=True, exist_ok=True)
        for path in source.iterdir():
            if any(fnmatch(path.name, pattern) for pattern in given["allow_patterns"]):
                shutil.copyfile(path, here / path.name)
        return str(here)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The package is replaced whole, so that nothing of it can reach a network."""
    server = Server(tmp_path / "server")
    fake, errors = ModuleType("huggingface_hub"), ModuleType("huggingface_hub.errors")
    for name in ("create_repo", "upload_folder", "snapshot_download"):
        setattr(fake, name, getattr(server, name))
    errors.HTTPError = ConnectionResetError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    return server


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(7)
    network = SPEC.build()
    with torch.no_grad():
        network.score_layer.weight.normal_(std=0.3)
    save_model(tmp_path / "model", network, SPEC)
    (tmp_path / "model" / "samples").mkdir()
    (tmp_path / "model" / "samples" / "photo.png").write_bytes(b"somebody's photo")
    (tmp_path / "model" / "checkpoint.safetensors").write_bytes(b"large")
    return tmp_path / "model"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def front_matter(card: Path) -> dict[str, Any]:
    _, fields, _ = card.read_text(encoding="utf-8").split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(fields)
    return found


def test_there_and_back_the_masks_are_the_same(server: Server, model: Path, photo: Path) -> None:
    before = sorted(path.relative_to(model) for path in model.rglob("*"))
    assert hub.push_to_hub(model, "me/cats", license="mit") == "hf://me/cats"
    assert sorted(path.relative_to(model) for path in model.rglob("*")) == before
    assert sorted(path.name for path in (server.root / "me" / "cats").iterdir()) == FILES
    own, back = load(model, device="cpu").segment(photo), load("hf://me/cats", device="cpu").segment(photo)
    assert np.array_equal(own.mask, back.mask)
    assert np.array_equal(own.scores, back.scores)
    assert len(np.unique(own.mask)) > 1
    assert load(hub.from_hub("me/cats")).spec == SPEC
    assert front_matter(server.root / "me" / "cats" / "README.md") == {
        "library_name": "milseg",
        "pipeline_tag": "image-segmentation",
        "tags": ["weakly-supervised", "multiple-instance-learning"],
        "license": "mit",
    }
    (_, made), (_, sent), (_, got), _ = server.calls
    assert (made["private"], made["exist_ok"], made["repo_type"]) == (True, True, "model")
    assert sorted(sent["allow_patterns"]) == sorted(got["allow_patterns"]) == FILES


def test_only_files_of_a_model_are_fetched(server: Server, model: Path) -> None:
    hub.push_to_hub(model, "me/cats")
    (server.root / "me" / "cats" / "pytorch_model.bin").write_bytes(b"a pickle")
    assert sorted(path.name for path in hub.from_hub("me/cats", revision="v1").iterdir()) == FILES
    assert server.calls[-1][1]["revision"] == "v1"


def test_addresses(server: Server, model: Path, tmp_path: Path) -> None:
    hub.push_to_hub(model, "me/cats")
    for address in ("hf://me/cats", Path("hf://me/cats")):
        assert hub.local_folder(address) == server.root / "cache" / "me" / "cats"
        assert server.calls[-1][1]["revision"] is None
    hub.local_folder(Path("hf://me/cats@v1.0"))
    assert server.calls[-1][1]["revision"] == "v1.0"
    assert hub.local_folder(tmp_path) == hub.local_folder(str(tmp_path)) == tmp_path
    for wrong in ("hf://cats", "hf://me/cats/more", "hf://../cats", "hf://me/..", "hf://me/cats@", "hf:/"):
        with pytest.raises(UserError, match="no address of a model; expected hf://OWNER/NAME"):
            hub.local_folder(wrong)
    for wrong in ("cats", "me/cats/x", "me/", "../cats", "me/a b"):
        with pytest.raises(UserError, match="no name of a repository; expected OWNER/NAME"):
            hub.push_to_hub(model, wrong)
        with pytest.raises(UserError, match="no name of a repository"):
            hub.from_hub(wrong)


def test_the_commands_take_an_address(
    server: Server,
    model: Path,
    photo: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    hub.push_to_hub(model, "me/cats")
    out = photo.parent / "masks"
    assert main(["predict", str(photo), "--model", "hf://me/cats", "--out", str(out)]) == 0
    assert np.array_equal(open_mask(out / "masks" / "photo.png"), load(model).segment(photo).mask)
    capsys.readouterr()
    assert main(["predict", str(photo), "--model", "hf://me/dogs", "--out", str(out), "--overwrite"]) == 2
    assert (
        "hf://me/dogs: could not be downloaded (404 Client Error. Repository Not Found)"
        in capsys.readouterr().err
    )
    assert main(["evaluate", str(photo.parent), "--model", "hf://me/dogs"]) == 2


@pytest.mark.parametrize("error", [OSError("refused"), ValueError("bad id"), ConnectionResetError("refused")])
def test_what_the_hub_refuses(
    server: Server, model: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**given: Any) -> None:
        raise error

    monkeypatch.setattr(sys.modules["huggingface_hub"], "upload_folder", refuse)
    with pytest.raises(
        UserError, match=r"hf://me/cats: could not be uploaded \((refused|bad id)\); look at the name"
    ):
        hub.push_to_hub(model, "me/cats")


def test_a_damaged_model_is_not_pushed(server: Server, model: Path) -> None:
    (model / "labels.json").write_text('{"classes": ["background", "cat"]}')
    with pytest.raises(UserError, match="does not fit the network"):
        hub.push_to_hub(model, "me/cats")
    assert server.calls == []


@pytest.mark.parametrize(
    "use",
    [
        lambda folder: hub.push_to_hub(folder, "me/cats"),
        lambda folder: hub.from_hub("me/cats"),
        lambda folder: load("hf://me/cats"),
    ],
)
def test_without_the_package_the_extra_is_named(
    model: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[[Path], Any]
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        UserError, match=r'need the package huggingface_hub; install it with pip install "milseg\[hub\]"'
    ):
        use(model)


def test_a_card_keeps_what_it_says(model: Path, tmp_path: Path) -> None:
    (model / "README.md").write_text(
        "---\ntags: cats\nlicense: cc0-1.0\npipeline_tag: mask-generation\n---\n# Mine\n\n---\n\nText\n",
        encoding="utf-8",
    )
    out = hub.save_to_hub_layout(model, tmp_path / "out")
    assert front_matter(out / "README.md") == {
        "library_name": "milseg",
        "pipeline_tag": "mask-generation",
        "tags": ["cats", "weakly-supervised", "multiple-instance-learning"],
        "license": "cc0-1.0",
    }
    assert (out / "README.md").read_text().endswith("---\n\n# Mine\n\n---\n\nText\n")
    again = hub.with_front_matter((out / "README.md").read_text(), license="mit")
    assert again == (out / "README.md").read_text().replace("cc0-1.0", "mit")
    with pytest.raises(UserError, match="out: already holds files"):
        hub.save_to_hub_layout(model, tmp_path / "out")


@pytest.mark.parametrize("text", ["---\ntags: [\n---\n", "---\nonly words\n---\n", "---\n- a\n---\n"])
def test_front_matter_that_is_none(text: str) -> None:
    with pytest.raises(UserError, match="its front matter is"):
        hub.with_front_matter(text)


@pytest.mark.parametrize("text", ["", "# Title\n", "---\n---\n# Title\n", "Text\n---\nmore\n---\n"])
def test_cards_without_fields(text: str) -> None:
    found = hub.with_front_matter(text)
    assert found.startswith("---\nlibrary_name: milseg\n")
    assert found.endswith("\n" + text.removeprefix("---\n---\n"))


def test_the_real_package_takes_what_is_passed(
    server: Server, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push_to_hub(model, "me/cats")
    hub.from_hub("me/cats")
    monkeypatch.undo()
    real = pytest.importorskip("huggingface_hub")
    assert {name for name, _ in server.calls} == {"create_repo", "upload_folder", "snapshot_download"}
    for name, given in server.calls:
        inspect.signature(getattr(real, name)).bind(**given)
    errors = importlib.import_module("huggingface_hub.errors")
    assert issubclass(errors.HTTPError, Exception)
    assert issubclass(errors.RepositoryNotFoundError, OSError)
    assert issubclass(errors.HFValidationError, ValueError)


@pytest.mark.parametrize("place", ["s3x://b/m", "http://nowhere/m", "file:///tmp/x", Path("s3://b/m")])
def test_addresses_of_unknown_kinds(place: Path | str) -> None:
    with pytest.raises(
        UserError, match="no model can be read from such an address; expected a folder, or hf://"
    ):
        hub.local_folder(place)
