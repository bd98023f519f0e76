"""The command line: help, settings, and a user's mistakes as one message with exit status 2."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import milseg.commands.reproduce
from milseg import __version__
from milseg.cli import COMMANDS, GROUPS, main, parse
from milseg.config import DigitsOptions, EvaluateOptions, InferenceConfig, VocOptions
from milseg.config.headings import HEADING_OF
from milseg.errors import UserError
from milseg.inference.model_folder import ModelSpec, save_model
from milseg.models.backbones import make_classifier

if TYPE_CHECKING:
    from conftest import SmallVoc

VOC = "reproduce voc"
DIGITS = "reproduce digits"


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def status(arguments: str | list[Any]) -> int:
    words = arguments.split() if isinstance(arguments, str) else [str(word) for word in arguments]
    try:
        return main(words)
    except SystemExit as stop:
        return int(stop.code or 0)


def mistake(capsys: pytest.CaptureFixture[str], arguments: str | list[Any]) -> str:
    """The message of a command that must fail as a user's mistake does, progress bars left out."""
    assert status(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in re.split(r"[\r\n]+", err) if line and not re.search(r"\d+%\||\| \d+/\d+", line)]
    starts = [line for line in lines if line.startswith("milseg")]
    assert len(starts) == 1, err
    assert starts[0] == lines[0], err
    return "\n".join(lines)


def files_below(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


# help and version


@pytest.mark.parametrize("words", ["", *GROUPS, *COMMANDS])
def test_help_reads_well(capsys: pytest.CaptureFixture[str], words: str) -> None:
    assert status(f"{words} --help") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"usage: milseg {words}".rstrip())
    for noise in ("<class", "<function", "type:", "[options]", "null", "SUPPRESS", "\b", "print_config"):
        assert noise not in out
    text = " ".join(out.split())
    if words == VOC:
        assert "--max-steps N updates of MIL-FCN" in text
        assert "as the challenge's archives unpack (required)" in text
        assert "or convnext_tiny (default: vgg16)" in text
        assert "--classes A,B,..." in text
        assert "--print-config print the settings" in text


@pytest.mark.parametrize("words", [words for words in COMMANDS if words != "list"])
def test_every_setting_has_its_option_and_its_help(capsys: pytest.CaptureFixture[str], words: str) -> None:
    status(f"{words} --help")
    out = capsys.readouterr().out
    for name, field in COMMANDS[words][0].__dataclass_fields__.items():
        shown = name.upper() if field.metadata.get("positional") else f"--{name.replace('_', '-')}"
        assert re.search(rf"^  {shown}\b.*(\n   |  )", out, flags=re.MULTILINE), name


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("--version") == 0
    assert capsys.readouterr().out == f"milseg {__version__}\n"


def test_help_as_a_program_is_quick_and_loads_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "milseg", "reproduce", "voc", "--help"],
        capture_output=True,
        text=True,
        timeout=280,
        check=True,
    )
    assert "--backbone" in done.stdout
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "argparse" in loaded
    assert loaded.isdisjoint({"torch", "torchvision", "numpy", "PIL", "matplotlib", "sklearn"})


def test_a_reader_that_goes_away_is_no_failure(tmp_path: Path) -> None:
    for name in ("pred", "truth"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.eye(2, dtype=np.uint8)).save(tmp_path / name / "a.png")
    (tmp_path / "pred" / "labels.json").write_text('{"classes": ["background", "cat"]}')
    words = ["evaluate", "--pred", str(tmp_path / "pred"), "--truth", str(tmp_path / "truth")]
    read, write = os.pipe()
    os.close(read)
    # Buffered, as output to a pipe is: the failure comes only when the buffer is written.
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-m", "milseg", *words],
        stdout=write,
        stderr=subprocess.PIPE,
        env=buffered,
        text=True,
        timeout=280,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


# settings


def test_options_become_settings() -> None:
    words, settings = parse(
        [
            "reproduce",
            "voc",
            "--root=/a",
            "--classes",
            "cat, dog",
            "--max-steps",
            "5",
            "--learning-rate",
            "1e-3",
        ]
    )
    assert words == VOC
    assert settings == VocOptions(root=Path("/a"), classes=("cat", "dog"), max_steps=5, learning_rate=1e-3)
    assert parse(["reproduce", "digits"])[1] == DigitsOptions()
    assert parse(["reproduce", "digits", "--ablations", "--seed", "3"])[1] == DigitsOptions(
        ablations=True, seed=3
    )
    assert parse(["evaluate", "--json", "--reading", "labels"])[1] == EvaluateOptions(
        json=True, reading="labels"
    )


def test_a_configuration_file_gives_settings_and_options_go_before_it(in_tmp: Path) -> None:
    Path("a.yaml").write_text("root: /b\nclasses: [cat, dog]\nmax_steps: 7\nyear: null\nresume: true\n")
    expected = {"root": Path("/b"), "classes": ("cat", "dog"), "resume": True}
    assert parse(["reproduce", "voc", "--config", "a.yaml"])[1] == VocOptions(max_steps=7, **expected)
    both = parse(["reproduce", "voc", "--config", "a.yaml", "--max-steps", "9"])[1]
    assert both == VocOptions(max_steps=9, **expected)
    Path("b.yaml").write_text("root: /b\nclasses: cat,dog\n")
    assert parse(["reproduce", "voc", "--config", "b.yaml"])[1].classes == ("cat", "dog")


def test_print_config_is_what_config_takes(capsys: pytest.CaptureFixture[str], in_tmp: Path) -> None:
    words = [
        "reproduce",
        "voc",
        "--root",
        "/a",
        "--classes",
        "cat,dog",
        "--score-scale",
        "0.5",
        "--overwrite",
    ]
    assert status([*words, "--print-config"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert yaml.safe_load(out)["classes"] == ["cat", "dog"]
    Path("a.yaml").write_text(out)
    assert parse(["reproduce", "voc", "--config", "a.yaml"])[1] == parse(words)[1]
    # Without an option that must be given it still prints.
    assert status([*words[:2], "--print-config"]) == 0


@pytest.mark.parametrize("rank", ["0", "1"])
def test_several_processes_are_refused_where_each_would_do_the_same(
    capsys: pytest.CaptureFixture[str], in_tmp: Path, monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    for name, value in {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert status("compare digits --max-steps 1 --out out") == 2
    told = "milseg: compare runs in one process, and 2 were started; start it without torchrun, which is for train"
    assert capsys.readouterr().err.startswith(told) == (rank == "0")
    assert not (in_tmp / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("reproduec", "milseg: unknown command 'reproduec'; did you mean 'reproduce'?"),
        ("reproduce digit", "unknown word after reproduce 'digit'; did you mean 'digits'?"),
        ("digits", "'digits' is no command; did you mean 'milseg reproduce digits'?"),
        ("voc_results", "unknown command 'voc_results'; did you mean 'voc-results'?"),
        ("photos train", "'photos' is no command; the command comes first: milseg train photos"),
        ("--device cpu train photos", "--device: unknown here; options follow their command"),
        ("--print-completion fish", "--print-completion: found 'fish'; expected bash or zsh"),
        (f"{VOC}", "milseg reproduce voc: --root is missing"),
        ("voc-results --root a", "milseg voc-results: --model is missing"),
        (
            f"{VOC} --root a --clases cat",
            "milseg reproduce voc: unknown option --clases; did you mean --classes?",
        ),
        (f"{VOC} --root a --max_steps 3", "unknown option --max_steps; did you mean --max-steps?"),
        (
            f"{VOC} --root a --seed x",
            "milseg reproduce voc: --seed: 'x' is not a whole number",
        ),
        (f"{VOC} --root a --year 20.5", "--year: '20.5' is not a whole number"),
        (f"{VOC} --root a --learning-rate fast", "--learning-rate: 'fast' is not a number"),
        (f"{VOC} --root a --learning-rate 0,001", "'0,001' is not a number; decimals have a point"),
        (f"{VOC} --root a --learning-rate nan", "--learning-rate: 'nan' is not a finite number"),
        (f"{VOC} --root a -r b", "unknown option '-r'"),
        (f"{VOC} \u2013root a", "unknown option '\u2013root'; did you mean --root?"),
        (f"{VOC} --root=", "--root: empty; expected a value"),
        (f"{VOC} --root a --classes cat --classes dog", "--classes is given twice; write --classes cat,dog"),
        (f"{VOC} --root a --classes ,", "--classes: expected one or more, with commas"),
        (f"{VOC} a", "unexpected 'a'; did you mean --root a?"),
        ("train", "milseg train: SOURCE is missing"),
        ("train --source a", "unknown option --source; give SOURCE without a name"),
        ("train a b", "unexpected 'b' after SOURCE 'a'; expected one SOURCE"),
        ("predict --model a", "milseg predict: INPUTS is missing"),
        ("predict a --model b --resume true", "--resume takes no value; found 'true'"),
        (f"{VOC} --root a --seed -1", "--seed -1: expected 0 to"),
        (f"{DIGITS} --seed -1", "--seed -1: expected 0 to"),
        (f"{DIGITS} --seed 4294967296", "--seed 4294967296: expected 0 to 4294967295"),
        (f"{DIGITS} --max-steps", "milseg reproduce digits: --max-steps: expected one argument"),
        (f"{DIGITS} --max-steps 0", "milseg: --max-steps 0: expected 1 or more"),
        (f"{DIGITS} --scenes 3", "--scenes 3: expected 4 or more"),
        (f"{DIGITS} --resume=maybe", "--resume takes no value; found 'maybe'"),
        (f"{DIGITS} more", "unexpected 'more'; this command takes options alone"),
        (f"{DIGITS} --device gpu", "--device: unknown device 'gpu'; did you mean 'cuda'?"),
        (f"{DIGITS} --config none.yaml", "none.yaml: cannot be read as YAML (No such file or directory)"),
        ("evaluate", "milseg: give either --pred with --truth"),
        ("evaluate --pred a", "give either --pred with --truth"),
        ("evaluate --pred a --truth b --model c", "give either --pred with --truth"),
        ("evaluate --pred a --truth b --split val", "--split goes with --model alone"),
        ("evaluate --pred a --truth b --tags t.csv", "--tags goes with --model alone"),
        ("evaluate --model a b --names n.txt", "--names goes with --pred alone"),
        ("evaluate --model a b --truth-labels voc", "--truth-labels goes with --truth alone"),
    ],
)
def test_mistakes_in_the_options(
    capsys: pytest.CaptureFixture[str], in_tmp: Path, arguments: str, message: str
) -> None:
    text = mistake(capsys, arguments)
    assert message in text
    assert "Parser key" not in text
    assert "<class" not in text
    assert files_below(in_tmp) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max-steps: 3", "a.yaml: unknown setting 'max-steps'; did you mean 'max_steps'"),
        ("colour: red", "a.yaml: unknown setting 'colour'"),
        ("max_steps: x", "a.yaml: max_steps: 'x' is not a whole number"),
        ("max_steps: 2.5", "a.yaml: max_steps: 2.5 is not a whole number"),
        ("ablations: maybe", "a.yaml: ablations: 'maybe'; expected true or false"),
        ("seed: [1", "a.yaml: cannot be read as YAML"),
        ("seed: !!python/object/apply:os.mkdir [bomb]", "a.yaml: cannot be read as YAML"),
        ("- seed", "a.yaml: expected settings, one a line"),
        ("", "a.yaml: expected settings, one a line"),
        ("seed: -4", "--seed -4: expected 0 to"),
    ],
)
def test_mistakes_in_a_configuration_file(
    capsys: pytest.CaptureFixture[str], in_tmp: Path, text: str, message: str
) -> None:
    Path("a.yaml").write_text(text)
    assert message in mistake(capsys, f"{DIGITS} --config a.yaml")
    assert files_below(in_tmp) == ["a.yaml"]


def test_spaces_in_a_path_are_told(capsys: pytest.CaptureFixture[str], in_tmp: Path) -> None:
    Path("my photos").mkdir()
    assert "a path with spaces needs quotes: 'my photos'" in mistake(capsys, "train my photos")


def test_photos_and_tags_in_any_order_are_told_apart(
    capsys: pytest.CaptureFixture[str], in_tmp: Path
) -> None:
    Path("photos").mkdir()
    Path("tags.csv").touch()
    for words in ("train tags.csv photos", "check photos tags.csv"):
        assert "did you mean photos --tags tags.csv?" in mistake(capsys, words)


def test_a_mistyped_path_is_suggested(capsys: pytest.CaptureFixture[str], in_tmp: Path, model: Path) -> None:
    Path("photos").mkdir()
    Path("tags.csv").write_text("image,tags\n")
    Image.new("RGB", (8, 8)).save("photos/a.png")
    Path("runs").mkdir()
    model.rename("runs/mine")
    for words, message in (
        (
            "train photo --tags tags.csv",
            "photo: no such file or folder; expected photos with tags, or a file of tags; did you mean 'photos'?",
        ),
        ("train photos --tags tag.csv", "tag.csv: no such tag file; did you mean 'tags.csv'?"),
        ("predict foto --model runs/mine", "matches it as a pattern"),
        ("predict photo --model runs/mine", "did you mean 'photos'?"),
        ("predict photos --model run/mine", "run/mine: no such folder, and a model folder holds"),
        ("predict photos --model run/mine", "did you mean 'runs/mine'?"),
        ("predict photos --model runs", "runs: no model itself, but these in it are: runs/mine"),
        ("predict photos --model runs/mine/config.yaml", "give its folder, runs/mine"),
        ("train photos", "name a tag file elsewhere by --tags FILE"),
    ):
        assert message in mistake(capsys, words), words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--batch-size 0", "--batch-size 0: expected 1 or more"),
        ("--max-steps 0", "--max-steps 0: expected 1 or more"),
        ("--learning-rate 0", "--learning-rate 0.0: expected a number above 0"),
        ("--longest-side 0", "--longest-side 0: expected 16 or more"),
        ("--hold-out 1", "--hold-out 1.0: expected a share of the photos"),
        ("--rounds 21", "--rounds 21: expected 0 to 20"),
        ("--seed -1", "--seed -1: expected 0 to"),
        ("--time-budget soon", "duration 'soon': expected such as 90s"),
    ],
)
def test_numbers_are_checked_before_anything_is_read(
    capsys: pytest.CaptureFixture[str], in_tmp: Path, words: str, message: str
) -> None:
    assert message in mistake(capsys, f"train nowhere {words}")


def test_a_refiners_options_are_checked_before_anything_is_read(
    capsys: pytest.CaptureFixture[str], in_tmp: Path
) -> None:
    told = mistake(capsys, ["train", "nowhere", "--refine", "crf(iterations=x)"])
    assert "iterations is x; expected a number" in told


def test_options_may_stand_between_the_photos() -> None:
    settings = parse(["predict", "a.png", "--model", "m", "b.png", "--", "-c.png"])[1]
    assert (settings.inputs, settings.model) == (("a.png", "b.png", "-c.png"), Path("m"))


def test_a_home_folder_is_found_where_the_shell_leaves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    settings = parse(["train", "photos", "--out=~/runs", "--weights=~/w.pth"])[1]
    assert (settings.out, settings.weights) == (Path("/home/me/runs"), "/home/me/w.pth")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("check --backbone vgg61", "--backbone: unknown backbone 'vgg61'; did you mean 'vgg16'?"),
        ("train --recipe bets", "--recipe: unknown recipe 'bets'; did you mean 'best'?"),
        ("train --rule top-k(k=3)+maxx", "--rule: unknown rule 'maxx'; did you mean 'max'?"),
        ("train --refine crff(iterations=1)", "--refine: unknown refiner 'crff'; did you mean 'crf'?"),
        ("train --precision bf16", "--precision: unknown precision 'bf16'; did you mean 'bfloat16'?"),
        ("train --schedule lineal", "--schedule: unknown schedule 'lineal'; did you mean 'linear'?"),
        ("train --tags-are partail", "--tags-are: unknown word for tags 'partail'; did you mean 'partial'?"),
        ("train --kind foldre", "--kind: unknown kind 'foldre'; did you mean 'folder'?"),
        ("train --device cudaa", "--device: unknown device 'cudaa'; did you mean 'cuda'?"),
        ("predict --model m --format coco,yoloo", "--format: unknown format 'yoloo'; did you mean 'yolo'?"),
        ("predict --model m --format label-studio", "did you mean 'labelstudio'?"),
        ("compare --rules max,camm", "--rules: unknown rule 'camm'; did you mean 'cam'?"),
    ],
)
def test_names_are_checked_before_anything_is_read(
    capsys: pytest.CaptureFixture[str], in_tmp: Path, words: str, message: str
) -> None:
    """The folder does not exist, which would be the message otherwise."""
    command, *rest = words.split()
    assert message in mistake(capsys, [command, "nowhere", *rest])


@pytest.mark.parametrize("words", ["", "help", "reproduce", "help reproduce", "help train"])
def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str], words: str) -> None:
    assert status(words) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: milseg ")
    assert err == ""


def test_every_option_has_its_heading() -> None:
    for words, (settings, _) in COMMANDS.items():
        for name in settings.__dataclass_fields__:
            assert name in HEADING_OF, f"{words}: give {name} a heading in milseg.config.headings"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_scripts_are_sound_and_name_what_may_be_typed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, shell: str
) -> None:
    assert status(f"--print-completion {shell}") == 0
    script = capsys.readouterr().out
    for word in ("predict", "--class-bias", "mobilenet_v2", "weighted-pooling"):
        assert word in script
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([shell, "-n", str(tmp_path / "script")], check=True, timeout=60)


def test_bash_completes_a_command_an_option_and_a_value(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if not shutil.which("bash"):
        pytest.skip("no bash here")
    assert status("--print-completion bash") == 0
    script = capsys.readouterr().out + (
        '\nanswer() { COMP_WORDS=(milseg "$@"); COMP_CWORD=$#; _shtab_milseg; echo "${COMPREPLY[*]}"; }\n'
        "answer tr; answer train --time; answer train --backbone mob\n"
    )
    (tmp_path / "script").write_text(script)
    done = subprocess.run(["bash", str(tmp_path / "script")], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["train", "--time-budget", "mobilenet_v2"]


# interruptions and bugs


def test_an_interruption_is_status_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, in_tmp: Path
) -> None:
    def interrupted(options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(milseg.commands.reproduce, "digits", interrupted)
    assert status(DIGITS) == 130
    assert "--resume goes on" in capsys.readouterr().err


def test_a_request_to_end_is_an_interruption(monkeypatch: pytest.MonkeyPatch, in_tmp: Path) -> None:
    monkeypatch.setattr(
        milseg.commands.reproduce, "digits", lambda options: os.kill(os.getpid(), signal.SIGTERM)
    )
    assert status(DIGITS) == 130


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, in_tmp: Path) -> None:
    def broken(options: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(milseg.commands.reproduce, "digits", broken)
    with pytest.raises(ValueError, match="a bug"):
        main(DIGITS.split())
    assert issubclass(UserError, ValueError)


# reproduce voc: what may be wrong with the input


def voc_words(root: Path, weights: Path, *more: Any) -> list[Any]:
    """A run of `reproduce voc` of two steps."""
    return [
        *(
            "reproduce",
            "voc",
            "--root",
            root,
            *(() if "--classes" in more else ("--classes", "cat,dog")),
            "--backbone",
            "tiny",
            "--weights",
            weights,
        ),
        *("--max-steps", 1, "--batch-size", 2, "--out", "out", *more),
    ]


def test_folders_without_voc_are_named(
    capsys: pytest.CaptureFixture[str], in_tmp: Path, tiny_weights: Path
) -> None:
    text = mistake(capsys, voc_words(in_tmp / "none", tiny_weights))
    assert f"{in_tmp / 'none'}: no such folder; expected a folder that holds VOCdevkit" in text
    (in_tmp / "empty").mkdir()
    assert "empty: no PASCAL VOC in it" in mistake(capsys, voc_words(in_tmp / "empty", tiny_weights))
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--classes", "cat,dgo"], "unknown VOC class 'dgo'; did you mean 'dog'"),
        (["--classes", "cat,cat"], "'cat' is given twice"),
        (["--backbone", "vgg61"], "unknown backbone 'vgg61'; did you mean 'vgg16'"),
        (["--train-set", "trian"], "unknown set 'trian'; did you mean 'train'"),
        (["--val-set", "train", "--train-set", "train"], "share 4 photos"),
        (["--year", 2011], "holds VOC2012; the set 'train' of VOC 2011 needs the folder VOC2011"),
        (["--sbd", "none"], "none"),
        (["--tags", "none.csv"], "none.csv: no such tag file"),
        (["--output-stride", 3], "tiny has no output stride 3; choose one of 4, 2"),
        (["--vgg-padding", "pad100"], "tiny has no fc6 to pad"),
        (["--vgg-padding", "pad"], "unknown VGG padding 'pad'"),
        (["--schedule", "lineal"], "unknown schedule 'lineal'; did you mean 'linear'"),
        (["--score-scale", 0], "--score-scale 0.0: expected a number above 0"),
        (["--batch-size", 0], "--batch-size 0: expected 1 or more"),
        (["--learning-rate", -1], "--learning-rate -1.0: expected a number above 0"),
        (["--device", "mps"], "--device mps: not on this machine; it has: auto, cpu"),
        (["--rule", "maxx"], "unknown rule 'maxx'; did you mean 'max'"),
        (["--rule", "oracle"], "--rule oracle: learns from masks"),
        (["--rule", "no_such_module_here:rule"], "no module 'no_such_module_here'"),
        (["--rule", "json:no_rule"], "module 'json' has no function 'no_rule'"),
        (["--rule", ":rule"], "rule ':rule': expected package.module:function"),
        (["--rule", "json:"], "rule 'json:': expected package.module:function"),
        (["--rule", ".json:loads"], "rule '.json:loads': expected package.module:function"),
    ],
)
def test_names_and_numbers_that_do_not_fit(
    capsys: pytest.CaptureFixture[str],
    in_tmp: Path,
    small_voc: SmallVoc,
    tiny_weights: Path,
    more: list[Any],
    message: str,
) -> None:
    assert message in mistake(capsys, voc_words(small_voc.root, tiny_weights, *more))
    assert files_below(in_tmp) == []


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("bomb",))


def bad_weights(kind: str, good: Path) -> Path:
    data = good.read_bytes()
    if kind == "truncated":
        Path("cut.safetensors").write_bytes(data[: len(data) // 2])
        return Path("cut.safetensors")
    if kind == "a text":
        Path("text.safetensors").write_text("no weights at all, only words")
        return Path("text.safetensors")
    if kind == "a pickle with code":
        Path("bomb.pth").write_bytes(pickle.dumps({"a": Bomb()}))
        return Path("bomb.pth")
    if kind == "of another network":
        save_file(make_classifier("squeezenet1_0", 1000).state_dict(), "other.safetensors")
        return Path("other.safetensors")
    if kind == "of too few classes":
        save_file(make_classifier("tiny", 10).state_dict(), "ten.safetensors")
        return Path("ten.safetensors")
    if kind == "not finite":
        state = load_file(good)
        state["classifier.bias"][0] = float("nan")
        save_file(state, "nan.safetensors")
        return Path("nan.safetensors")
    return Path("nowhere.safetensors" if kind == "missing" else "weights.onnx")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "nowhere.safetensors: no such weights file"),
        ("unknown type", "weights.onnx: weights must be 'imagenet' or a file that ends in .safetensors"),
        ("truncated", "cut.safetensors: damaged or cut short"),
        ("a text", "text.safetensors: damaged or cut short"),
        ("a pickle with code", "bomb.pth: not a plain table of tensors"),
        ("of another network", "other.safetensors: not a tiny in torchvision's layout"),
        ("of too few classes", "ten.safetensors: a classifier of 10 classes where 1000 were expected"),
        ("not finite", "nan.safetensors: classifier.bias holds values that are not finite"),
    ],
)
def test_weights_that_do_not_fit_stop_the_run_before_anything_is_written(
    capsys: pytest.CaptureFixture[str],
    in_tmp: Path,
    small_voc: SmallVoc,
    tiny_weights: Path,
    kind: str,
    message: str,
) -> None:
    weights = bad_weights(kind, tiny_weights)
    assert message in mistake(capsys, voc_words(small_voc.root, weights))
    assert not Path("out").exists()
    assert not Path("bomb").exists()


def test_a_photo_cut_short_is_left_out_of_every_row(
    capsys: pytest.CaptureFixture[str], in_tmp: Path, small_voc: SmallVoc, tiny_weights: Path
) -> None:
    """One photo that cannot be read ends no run, and the table says that it is missing."""
    whole = small_voc.photo("v1").read_bytes()
    small_voc.photo("v1").write_bytes(whole[: len(whole) // 3])
    assert status(voc_words(small_voc.root, tiny_weights)) == 0
    err = capsys.readouterr().err
    assert err.count("milseg: left out: ") == 1
    assert "replace the file or leave it out" in err
    table = Path("out/table1.md").read_text()
    assert "1 photos that cannot be read left out, such as v1" in table
    assert "scored on 1 (VOC2012 val)" in table
    rows = json.loads(Path("out/table1.json").read_text())["rows"]
    assert {row["photos"] for row in rows} == {1}
    assert Path("out/figure1.png").is_file()


def test_no_photo_to_score_on_is_a_mistake(
    capsys: pytest.CaptureFixture[str], in_tmp: Path, small_voc: SmallVoc, tiny_weights: Path
) -> None:
    for name in ("v0", "v1"):
        small_voc.photo(name).write_bytes(small_voc.photo(name).read_bytes()[:200])
    assert status(voc_words(small_voc.root, tiny_weights)) == 2
    assert "VOC2012 val: none of its 2 photos can be read; the first: v0" in capsys.readouterr().err
    assert not Path("out/table1.json").exists()


def test_a_training_photo_cut_short_leaves_nothing_half_written_and_resume_goes_on_once_it_is_whole(
    capsys: pytest.CaptureFixture[str], in_tmp: Path, small_voc: SmallVoc, tiny_weights: Path
) -> None:
    whole = small_voc.photo("t2").read_bytes()
    small_voc.photo("t2").write_bytes(whole[:500])
    words = voc_words(small_voc.root, tiny_weights, "--batch-size", 4)
    assert status(words) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"milseg: {small_voc.photo('t2')}: damaged or cut short")
    found = files_below(Path("out"))
    assert "table1.json" not in found
    assert [name for name in found if "tmp" in name] == []
    small_voc.photo("t2").write_bytes(whole)
    # The message of a second try says how to go on.
    assert "out: already holds files; --resume goes on with that run" in mistake(capsys, words)
    assert status([*words, "--resume"]) == 0
    assert "table1.json" in files_below(Path("out"))


def test_a_mask_of_another_size_is_named(
    capsys: pytest.CaptureFixture[str], in_tmp: Path, small_voc: SmallVoc, tiny_weights: Path
) -> None:
    small_voc.write_mask("v0", np.zeros((41, 49), dtype=np.uint8))
    text = mistake(capsys, voc_words(small_voc.root, tiny_weights))
    assert f"{small_voc.mask('v0')}: mask of 49 x 41 pixels for a photo of 50 x 41" in text
    assert "1 of 2 masks have another size than their photos; export the masks again" in text


def test_a_mask_cut_short_is_left_out_and_named(
    capsys: pytest.CaptureFixture[str], in_tmp: Path, small_voc: SmallVoc, tiny_weights: Path
) -> None:
    small_voc.mask("v0").write_bytes(small_voc.mask("v0").read_bytes()[:-40])
    assert status(voc_words(small_voc.root, tiny_weights)) == 0
    table = Path("out/table1.md").read_text()
    assert f"1 photos whose true mask cannot be read left out: {small_voc.mask('v0')}: damaged" in table
    assert "scored on 1 (VOC2012 val)" in table


def test_a_full_folder_is_refused_without_a_word_about_it(
    capsys: pytest.CaptureFixture[str], in_tmp: Path, small_voc: SmallVoc, tiny_weights: Path
) -> None:
    Path("out").mkdir()
    Path("out/mine.txt").write_text("keep")
    text = mistake(capsys, voc_words(small_voc.root, tiny_weights))
    assert "out: already holds files; --resume goes on with that run, --overwrite starts anew" in text
    assert files_below(Path("out")) == ["mine.txt"]
    Path("file").touch()
    assert "file" in mistake(capsys, [*voc_words(small_voc.root, tiny_weights), "--out", "file"])


def test_ones_own_rule_lies_in_the_current_folder(
    capsys: pytest.CaptureFixture[str], in_tmp: Path, small_voc: SmallVoc, tiny_weights: Path
) -> None:
    Path("rule_of_mine.py").write_text(
        "from milseg import mil_loss\n"
        "CALLS = []\n\n\n"
        "def rule(scores, tags, valid, **given):\n"
        "    CALLS.append(tuple(scores.shape))\n"
        "    return mil_loss(scores, tags, valid)\n"
    )
    try:
        assert status(voc_words(small_voc.root, tiny_weights, "--rule", "rule_of_mine:rule")) == 0
        import rule_of_mine  # type: ignore[import-not-found]

        assert rule_of_mine.CALLS == [(2, 3, 11, 13)]
    finally:
        sys.modules.pop("rule_of_mine", None)
    out = capsys.readouterr().out
    assert "mil-fcn" not in out
    assert re.search(r"MIL-FCN +\d+\.\d\d +image tags \(XML annotations\)", out)
    assert "--rule rule_of_mine:rule" in json.loads(Path("out/table1.json").read_text())["command"]


# evaluate and voc-results


def test_evaluate_names_the_missing_folder(capsys: pytest.CaptureFixture[str], in_tmp: Path) -> None:
    assert "none: no such folder" in mistake(capsys, "evaluate --pred none --truth none2")
    Path("none").mkdir()
    assert "none: holds no PNG masks" in mistake(capsys, "evaluate --pred none --truth none2")
    Image.fromarray(np.ones((2, 2), dtype=np.uint8)).save("none/a.png")
    assert "none2: no such folder" in mistake(capsys, "evaluate --pred none --truth none2")


@pytest.fixture
def folders(in_tmp: Path) -> Path:
    """Predictions and truth of two masks: IU of background 3/4, of cat 1/2."""
    for name in ("pred", "truth"):
        Path(name).mkdir()
    Path("pred/labels.json").write_text('{"classes": ["background", "cat"]}')
    for stem, predicted, true in (("a", [[0, 1]], [[0, 1]]), ("b", [[0, 1, 0]], [[0, 0, 255]])):
        Image.fromarray(np.array(predicted, dtype=np.uint8)).save(f"pred/{stem}.png")
        Image.fromarray(np.array(true, dtype=np.uint8)).save(f"truth/{stem}.png")
    return in_tmp


def test_evaluate_folders(capsys: pytest.CaptureFixture[str], folders: Path) -> None:
    assert status("evaluate --pred pred --truth truth") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "| cat | 50.00 |" in out
    assert status("evaluate --pred pred --truth truth --json --out deep/scores.json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(Path("deep/scores.json").read_text())
    assert printed["per_class_iu"] == {"background": pytest.approx(200 / 3), "cat": 50.0}
    assert (printed["predictions"], printed["truth"]) == ("pred", "truth")


@pytest.mark.parametrize("option", ["--labels", "--names"])
def test_evaluate_names_what_is_missing(
    capsys: pytest.CaptureFixture[str], folders: Path, option: str
) -> None:
    assert "none.txt: no such" in mistake(capsys, f"evaluate --pred pred --truth truth {option} none.txt")


def test_evaluate_masks_of_another_size(capsys: pytest.CaptureFixture[str], folders: Path) -> None:
    Image.fromarray(np.zeros((2, 2), dtype=np.uint8)).save("pred/a.png")
    text = mistake(capsys, "evaluate --pred pred --truth truth --out scores.json")
    assert f"{Path('pred/a.png')}: 2 x 2 pixels, but {Path('truth/a.png')} has 2 x 1" in text
    assert not Path("scores.json").exists()


@pytest.fixture
def model(in_tmp: Path) -> Path:
    spec = ModelSpec(backbone="tiny", classes=("background", "cat", "dog"))
    save_model(Path("model"), spec.build(), spec)
    return Path("model")


def test_evaluate_a_model(capsys: pytest.CaptureFixture[str], model: Path, small_voc: SmallVoc) -> None:
    words = ["evaluate", "--model", model, small_voc.root, "--json"]
    assert status(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["set"], found["supervision"], found["reading"]) == ("VOC2012 val", "tags", "scores")
    assert found["photos"] == 2
    assert "unknown reading 'label'" in mistake(capsys, [*words, "--reading", "label"])
    Path("model/model.safetensors").write_bytes(b"short")
    assert "model.safetensors: damaged or cut short" in mistake(capsys, words)
    assert "none" in mistake(capsys, ["evaluate", "--model", "none", small_voc.root])


def test_evaluate_a_model_on_any_photos(
    capsys: pytest.CaptureFixture[str], model: Path, small_voc: SmallVoc
) -> None:
    """Photos with a table, true masks elsewhere; the score is that of `predict` and then `evaluate --pred`."""
    spec = ModelSpec(
        backbone="tiny",
        classes=("background", "cat", "dog"),
        longest_side=24,
        inference=InferenceConfig(scales=(1.0, 1.5), flip=True),
    )
    network = spec.build()
    with torch.no_grad():
        network.score_layer.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    save_model(model, network, spec)
    photos, truth = small_voc.home / "JPEGImages", small_voc.home / "SegmentationClass"
    rows = ["t0.jpg,cat,train", "t1.jpg,dog,train", "v0.jpg,cat,val", "v1.jpg,dog zebra,val", "x0.jpg,,test"]
    Path("tags.csv").write_text("\n".join(["image,tags,split", *rows]))
    words = [
        "evaluate",
        "--model",
        model,
        photos,
        "--tags",
        "tags.csv",
        "--truth",
        truth,
        "--truth-labels",
        "voc",
    ]
    assert status([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["photos"] == 4
    assert (found["set"], found["truth"]) == ("JPEGImages", str(truth))
    assert any("1 photos without a true mask left out, such as x0" in note for note in found["notes"])

    assert status(["predict", photos, "--model", model, "--out", "masks"]) == 0
    Path("names.txt").write_text("t0\nt1\nv0\nv1\n")
    capsys.readouterr()
    again = [
        "evaluate",
        "--pred",
        "masks/masks",
        "--truth",
        truth,
        "--truth-labels",
        "voc",
        "--names",
        "names.txt",
    ]
    assert status([*again, "--json"]) == 0
    both = json.loads(capsys.readouterr().out)
    for name in ("mean_iu", "per_class_iu", "pixel_accuracy", "predicted_share", "photos"):
        assert found[name] == both[name], name
    assert found["mean_iu"] > 0

    assert status([*words, "--split", "val", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["photos"] == 2
    Path("labels.json").write_text('{"classes": ["background", "zebra"]}')
    assert "share no name" in mistake(capsys, [*words[:-2], "--truth-labels", "labels.json"])
    assert "no photo is in the split 'dev'" in mistake(capsys, [*words, "--split", "dev"])
    assert "no true masks; give a folder" in mistake(capsys, words[:-4])


def test_evaluate_names_a_photo_that_cannot_be_read(
    capsys: pytest.CaptureFixture[str], model: Path, small_voc: SmallVoc
) -> None:
    """A score of fewer photos is another score: it is told which photo is missing."""
    data = small_voc.photo("v1").read_bytes()[:-300]
    small_voc.photo("v1").write_bytes(data)
    assert status(["evaluate", "--model", model, small_voc.root, "--out", "scores.json"]) == 0
    out, err = capsys.readouterr()
    reason = f"{small_voc.photo('v1')}: damaged or cut short"
    assert f"milseg: left out: {reason}" in err
    assert f"1 photos that cannot be read left out, such as {reason}" in out
    assert small_voc.photo("v1").read_bytes() == data
    scores = json.loads(Path("scores.json").read_text())
    assert scores["photos"] == 1
    assert any(reason in note for note in scores["notes"])


def test_voc_results(capsys: pytest.CaptureFixture[str], model: Path, small_voc: SmallVoc) -> None:
    words = ["voc-results", "--model", model, "--root", small_voc.root, "--out", "results"]
    assert status(words) == 0
    assert "1 masks in" in capsys.readouterr().out
    assert files_below(Path("results")) == [
        "results.tgz",
        "results/VOC2012/Segmentation/comp6_test_cls/x0.png",
    ]
    assert "results: already holds files" in mistake(capsys, words)
    assert status([*words, "--overwrite"]) == 0
    capsys.readouterr()
    assert "unknown VOC competition" in mistake(capsys, [*words[:-1], "other", "--competition", "comp7"])
