"""Model folders: written whole or not at all, and safe to read."""

from __future__ import annotations

import json
import math
import os
import pickle
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import milseg.utils.tensors
from milseg import __version__
from milseg.config import InferenceConfig
from milseg.errors import UserError
from milseg.inference.model_folder import ModelSpec, load_model, save_model
from milseg.inference.prior import Prior
from milseg.models.fcn import FCN

SPEC = ModelSpec(backbone="tiny", classes=("background", "cat", "dög"), output_stride=2, longest_side=320)
FILES = ["config.yaml", "labels.json", "model.safetensors"]


def net(seed: int = 0) -> FCN:
    """Every weight random, batch norm's statistics too."""
    model = SPEC.build()
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.normal_(std=0.1, generator=generator)
            if "running_var" in name:
                tensor.abs_().add_(0.5)
    return model.eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", net(), SPEC)
    return tmp_path / "model"


def test_round_trip_gives_the_same_outputs_bit_for_bit(tmp_path: Path) -> None:
    model, photo = net(), torch.randn(2, 3, 33, 21, generator=torch.Generator().manual_seed(1))
    save_model(tmp_path / "a" / "b", model, SPEC)
    again, spec = load_model(tmp_path / "a" / "b")
    assert spec == SPEC
    assert not again.training
    assert again.stride == 2
    with torch.inference_mode():
        assert torch.equal(again(photo), model(photo))
    assert sorted(os.listdir(tmp_path / "a" / "b")) == FILES


def test_the_files_say_what_they_are_and_everyone_may_read_them(folder: Path) -> None:
    record = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert record == {
        "backbone": "tiny",
        "output_stride": 2,
        "vgg_padding": "same",
        "supervision": "tags",
        "tags_from": "",
        "longest_side": 320,
        "inference": {
            "scales": [1.0],
            "flip": False,
            "prior": 0.0,
            "random_walk": 0,
            "refine": "none",
            "refine_side": 512,
        },
        "prior": None,
        "value_ranges": {},
        "milseg_version": __version__,
    }
    assert json.loads((folder / "labels.json").read_text(encoding="utf-8")) == {"classes": list(SPEC.classes)}
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_inference_and_prior_come_back(tmp_path: Path) -> None:
    spec = replace(
        SPEC,
        inference=InferenceConfig(scales=(1.0, 1.5), flip=True, prior=0.5, refine="crf(iterations=3)"),
        prior=Prior(slope=(0.0, 1.25, 2.5), intercept=(math.inf, -1.0, 0.5)),
    )
    save_model(tmp_path, net(), spec)
    assert load_model(tmp_path)[1] == spec


def test_a_later_versions_settings_are_skipped(folder: Path) -> None:
    with (folder / "config.yaml").open("a") as file:
        file.write("colour: blue\n")
    assert load_model(folder)[1] == SPEC


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name}: missing; a model folder holds"):
        load_model(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights_are_named(folder: Path, share: float) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match=r"model\.safetensors: damaged or cut short"):
        load_model(folder)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("bomb",))


def safetensors_with(header: bytes, data: bytes = b"", *, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps({"a": Bomb()}),
        b"PK\x03\x04" + bytes(100),
        safetensors_with(b"{}", length=2**62),
        safetensors_with(b"{}", length=2**63 + 5),
        safetensors_with(b"not json"),
        safetensors_with(b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}', bytes(4)),
        safetensors_with(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}', bytes(4)),
        safetensors_with(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,400]}}', bytes(4)),
        safetensors_with(b'{"a":{"dtype":"X9","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
        safetensors_with(b"[" * 100_000),
    ],
)
def test_hostile_weights_are_refused_and_named(
    folder: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=r"model\.safetensors: damaged or cut short"):
        load_model(folder)
    assert not (folder.parent / "bomb").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.yaml", ""),
        ("config.yaml", "- a\n"),
        ("config.yaml", "backbone: [tiny"),
        ("config.yaml", "classes: [a]\n"),
        ("config.yaml", "backbone: 5\n"),
        ("config.yaml", "backbone: tiny\nvgg_padding: 5\n"),
        ("config.yaml", "backbone: !!python/object/apply:os.mkdir [bomb]\n"),
        ("config.yaml", "\x00"),
        ("labels.json", ""),
        ("labels.json", "[]"),
        ("labels.json", "{}"),
        ("labels.json", '{"classes": "background"}'),
        ("labels.json", '{"classes": []}'),
        ("labels.json", '{"classes": 3}'),
        ("labels.json", "[" * 100_000),
    ],
)
def test_damaged_texts_are_named(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    (folder / name).write_text(text)
    with pytest.raises(UserError) as caught:
        load_model(folder)
    assert str(caught.value).startswith(f"{folder / name}: ")
    assert not (folder.parent / "bomb").exists()


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("config.yaml", "backbone: tiny", "backbone: tinny", "did you mean 'tiny'"),
        ("config.yaml", "output_stride: 2", "output_stride: 3", "tiny has no output stride 3"),
        (
            "config.yaml",
            "output_stride: 2",
            "output_stride: x",
            "output_stride is 'x'; expected a whole number",
        ),
        (
            "config.yaml",
            "backbone: tiny\noutput_stride: 2",
            "backbone: squeezenet1_0",
            r"model\.safetensors: does not fit the network .*\d+ tensors differ",
        ),
        ("labels.json", '"cat",', "", r"2 tensors differ, score_layer\.bias among them"),
    ],
)
def test_files_that_do_not_belong_together(folder: Path, name: str, old: str, new: str, message: str) -> None:
    path = folder / name
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_model(folder)


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 10)}]}}\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("backbone", "null", "backbone is none; expected a text"),
        ("backbone", "[tiny]", "backbone is a list of 1"),
        ("output_stride", "'2'", "output_stride is '2'; expected a whole number from 1 to 64, or none"),
        ("output_stride", "true", "output_stride is true"),
        ("output_stride", "2.0", r"output_stride is 2\.0"),
        ("output_stride", "9" * 4000, "a whole number of more than 60 digits"),
        ("output_stride", "0x" + "f" * 9000, "a whole number of more than 60 digits"),
        ("longest_side", "wide", "longest_side is 'wide'; expected a whole number from 1 to 100000, or none"),
        ("longest_side", "0", "longest_side is 0"),
        ("longest_side", "-5", "longest_side is -5"),
        ("longest_side", "320.5", r"longest_side is 320\.5"),
        ("longest_side", "true", "longest_side is true"),
        ("longest_side", ".inf", "longest_side is inf"),
        ("longest_side", "2026-11-27", "longest_side is a date"),
        ("supervision", "3", "supervision is 3; expected a text"),
        ("supervision", "null", "supervision is none; expected a text"),
        ("tags_from", "{a: b}", "tags_from is settings by name"),
        ("tags_from", "x" * 20_000, r"tags_from is 'x{60}'\.\.\.; expected a text of 0 to 10,000 characters"),
        ("milseg_version", "[1, 2]", "milseg_version is a list of 2"),
        ("inference", "null", "inference is none; expected settings by name"),
        ("inference", "3", "inference is 3"),
        ("inference", "{prior: .nan}", "inference: prior is nan; expected a number from 0 to 10"),
        ("inference", "{prior: .inf}", "inference: prior is inf"),
        ("inference", "{prior: true}", "inference: prior is true"),
        ("inference", "{scales: 1.0}", r"inference: scales is 1\.0; expected a list of 1 to 16 numbers"),
        ("inference", "{scales: []}", "inference: scales is a list of 0"),
        ("inference", "{scales: [[1.0]]}", r"inference: scales\[0\] is a list of 1"),
        ("inference", "{scales: [1.0, .nan]}", r"inference: scales\[1\] is nan"),
        (
            "inference",
            f"{{scales: [{', '.join(['1.0'] * 10_000)}]}}",
            "inference: scales is a list of 10,000",
        ),
        ("inference", "{flip: 1}", "inference: flip is 1; expected true or false"),
        ("inference", "{flip: 'no'}", "inference: flip is 'no'"),
        (
            "inference",
            "{random_walk: 1000000000}",
            "inference: random_walk is 1000000000; expected .* 0 to 100",
        ),
        ("inference", "{refine_side: 1000000000}", "inference: refine_side is 1000000000"),
        ("inference", "{refine: null}", "inference: refine is none"),
        (
            "inference",
            "{refine: crf(iterations=1000000)}",
            "refiner crf: iterations is 1000000; expected 0 to 100",
        ),
        ("inference", "{refine: superpixels(count=1000000000)}", "count is 1000000000; expected 1 to"),
        ("inference", "{refine: pamr(iterations=10000)}", "refiner pamr: iterations is 10000"),
        ("inference", "{refine: crff}", "unknown refiner 'crff'; did you mean 'crf'"),
        ("inference", "{refine: 'crf(iterations=__import__(1))'}", "expected a number"),
        ("inference", "{refinement: none}", "inference: holds the unknown key 'refinement'; known: scales"),
        ("inference", "{1: 2}", "inference: holds the unknown key 1"),
        ("prior", "[1, 2]", "prior is a list of 2; expected settings by name"),
        ("prior", "{slope: [1, 1, 1]}", "prior: intercept is missing; expected a list"),
        ("prior", "{slope: [1, .nan, 1], intercept: [1, 1, 1]}", r"prior: slope\[1\] is nan"),
        ("prior", "{slope: [1, 1, 1], intercept: [1, -.inf, 1]}", r"prior: intercept\[1\] is -inf"),
        ("prior", "{slope: [1, .inf, 1], intercept: [1, 1, 1]}", r"prior: slope\[1\] is inf"),
        ("prior", "{slope: [1, 1.0e+300, 1], intercept: [1, 1, 1]}", r"prior: slope\[1\] is 1e\+300"),
        ("prior", "{slope: [1, true, 1], intercept: [1, 1, 1]}", r"prior: slope\[1\] is true"),
        ("prior", "{slope: [1, 1, 1], intercept: [1, 1]}", "slope has 3 numbers and intercept 2"),
        ("prior", "{slope: [1, 1], intercept: [1, 1]}", "prior has 2 numbers for 3 classes"),
        ("prior", "{slope: 1, intercept: 1}", "prior: slope is 1; expected a list"),
        ("more", "[" * 20_000, "nested more than 50 deep"),
        ("more", "{a: " * 20_000, "nested more than 50 deep"),
        ("more", "&a [*a]", "stands inside of itself"),
        ("more", "x\n" + BOMB, "more than 200,000 values"),
        ("more", "x\n" + MERGES, "more than 200,000 values"),
        ("more", "1:" * 400 + "1.5", "does not fit its tag"),
        ("more", "!!binary x", "config.yaml: cannot be read"),
        ("more", "x  # " + "x" * 3_000_000, r"bytes, over the limit of 1,048,576"),
    ],
)
def test_values_of_the_settings_that_make_no_sense(folder: Path, key: str, value: str, words: str) -> None:
    """One message with the file and the key, at once, and no memory taken."""
    path = folder / "config.yaml"
    record = yaml.safe_load(path.read_text(encoding="utf-8"))
    record.pop(key, None)
    path.write_text(f"{yaml.safe_dump(record)}{key}: {value}\n", encoding="utf-8")
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=words) as caught:
        load_model(folder)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 1000
    assert time.process_time() - began < 15
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ([f"c{number}" for number in range(100_000)], "over the limit of 1,048,576|is a list of 100,000"),
        (
            [str(number) for number in range(10_001)],
            "classes is a list of 10,001; expected a list of 1 to 10,000",
        ),
        ([str(number) for number in range(10_000)], r"model\.safetensors: does not fit"),
        (["background", "cat", "cat"], r"classes\[1\] 'cat' comes twice"),
        (["background", "cat", ""], r"classes\[2\] is ''; expected a text of 1 to 500 characters"),
        (["background", "cat", "  "], r"classes\[2\] '  ' is blank"),
        (["background", "cat", "x" * 501], r"classes\[2\] is 'x"),
        (["background", "cat", "a\0b"], r"classes\[2\] is 'a"),
        (["background", "cat", None], r"classes\[2\] is none"),
        (["background", "cat", 5], r"classes\[2\] is 5"),
        (["background", "cat", ["dog"]], r"classes\[2\] is a list of 1"),
        ({"background": 0}, "classes is settings by name"),
    ],
)
def test_names_of_classes_that_make_no_sense(folder: Path, classes: Any, words: str) -> None:
    (folder / "labels.json").write_text(json.dumps({"classes": classes}))
    with pytest.raises(UserError, match=words):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensor: tensor.fill_(math.nan), "score_layer.bias holds values that are not finite"),
        (lambda tensor: tensor.fill_(math.inf), "score_layer.bias holds values that are not finite"),
        (lambda tensor: tensor.double().fill_(1e300), "score_layer.bias holds values that are not finite"),
        (lambda tensor: tensor.to(torch.int64), "score_layer.bias holds torch.int64; expected torch.float32"),
        (lambda tensor: tensor.to(torch.complex64), "score_layer.bias holds torch.complex64"),
    ],
)
def test_weights_that_make_no_sense(folder: Path, change: Callable[..., torch.Tensor], words: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["score_layer.bias"] = change(tensors["score_layer.bias"])
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=words):
        load_model(folder)


def test_a_table_of_tensors_is_measured_before_it_is_read(folder: Path) -> None:
    """100 MB of names would be parsed by safetensors itself."""
    path = folder / "model.safetensors"
    names = b",".join(
        b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % number for number in range(400_000)
    )
    path.write_bytes(safetensors_with(b"{" + names + b"}"))
    with pytest.raises(UserError, match=r"damaged or cut short \(a table of .* bytes, over the limit"):
        load_model(folder)


def test_weights_in_half_precision_are_read_as_float32(folder: Path) -> None:
    tensors = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file({name: t if t.ndim else t.long() for name, t in tensors.items()}, folder / "model.safetensors")
    model, _ = load_model(folder)
    assert {tensor.dtype for tensor in model.state_dict().values()} <= {torch.float32, torch.int64}
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("change", ["extra", "missing"])
def test_tensors_too_many_or_too_few(folder: Path, change: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    if change == "extra":
        tensors["more"] = torch.zeros(1)
    else:
        del tensors["score_layer.bias"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match="1 tensors differ"):
        load_model(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_saved_and_the_old_ones_stay(folder: Path, value: float) -> None:
    before = {name: (folder / name).read_bytes() for name in FILES}
    broken = net(1)
    with torch.no_grad():
        broken.score_layer.weight[1, 3] = value
    with pytest.raises(UserError, match=r"not saved, score_layer\.weight is no longer finite"):
        save_model(folder, broken, replace(SPEC, supervision="masks"))
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_during_a_save_leaves_the_old_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    before = (folder / "model.safetensors").read_bytes()

    def half(tensors: Any, path: Path, metadata: Any) -> None:
        Path(path).write_bytes(before[:100])
        raise error

    monkeypatch.setattr(milseg.utils.tensors, "save_file", half)
    with pytest.raises(error):
        save_model(folder, net(1), SPEC)
    assert (folder / "model.safetensors").read_bytes() == before
    assert sorted(os.listdir(folder)) == FILES


def test_a_model_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "model").touch()
    with pytest.raises(UserError, match="model: cannot write there"):
        save_model(tmp_path / "model", net(), SPEC)


LIMITED = """
import resource, sys
from pathlib import Path
from milseg.inference.model_folder import ModelSpec, save_model
from milseg.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
spec = ModelSpec(backbone="tiny", classes=("background", "cat", "d\\u00f6g"), output_stride=2)
try:
    save_model(Path(sys.argv[1]), spec.build(), spec)
except UserError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on file sizes there")
def test_a_file_that_cannot_be_written_whole_is_one_message_and_the_old_one_stays(folder: Path) -> None:
    """A limit on file sizes stands for a full disk: the system refuses the write half-way."""
    before = (folder / "model.safetensors").read_bytes()
    assert len(before) > 200_000
    child = subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder)], capture_output=True, text=True, timeout=280, check=True
    )
    assert "model.safetensors: cannot be written" in child.stdout
    assert (folder / "model.safetensors").read_bytes() == before
    assert sorted(os.listdir(folder)) == FILES


def test_the_weights_say_which_version_wrote_them(folder: Path) -> None:
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"milseg": __version__}


def test_a_folder_written_under_an_earlier_name_is_read(tmp_path: Path) -> None:
    spec = ModelSpec(
        backbone="tiny",
        classes=("background", "cat"),
        inference=InferenceConfig(random_walk=3, refine="none"),
    )
    save_model(tmp_path, spec.build(), spec)
    config = tmp_path / "config.yaml"
    text = config.read_text(encoding="utf-8")
    assert "random_walk: 3" in text
    config.write_text(text.replace("random_walk: 3", "walk: 3"), encoding="utf-8")
    assert load_model(tmp_path)[1].inference.random_walk == 3
