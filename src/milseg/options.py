"""The settings of every command, as dataclasses that import nothing heavy: `--help` stays quick."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from milseg.errors import UserError, unknown_name

SCHEDULES = ("constant", "linear")
READINGS = ("scores", "labels")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train; the defaults are the paper's for VGG-16 ("Experiments").

    Attributes:
        rule: a name from the table of rules, or one's own as package.module:function.
        max_steps: updates of the weights.
        batch_size: photos an update (the authors' later public code accumulates 20).
        learning_rate: of the body's weights; biases take twice this.
        score_rate: times the learning rate, for the score layer.
        momentum: of SGD.
        weight_decay: on weights, not on biases.
        schedule: "constant", or "linear" down to 0 at the last step.
        longest_side: larger photos are made this small while training, pixels; none keeps their own size.
        flip: mirror half of the photos.
        dropout: keep the classifier's dropout layers on.
        warmup: steps in which the learning rate rises from 0.
        max_gradient: longer gradients are made this long (norm over all weights); none leaves them.
        frozen_stride: layers up to this output stride keep the classifier's weights; 0 trains all.
        mask_weight: weight of the cross entropy to the bags' masks beside the rule's loss, as in a round on one's own
            masks; 0 for the rule alone, and then no mask is read.
        rule_weight: weight of the rule's loss.
        seed: of the order of photos, flips and dropout.
        checkpoint_every: steps between checkpoints.
    """

    rule: str = "max"
    max_steps: int = 10_000
    batch_size: int = 20
    learning_rate: float = 1e-4
    score_rate: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "constant"
    longest_side: int | None = None
    flip: bool = False
    dropout: bool = True
    warmup: int = 0
    max_gradient: float | None = None
    frozen_stride: int = 0
    mask_weight: float = 0.0
    rule_weight: float = 1.0
    seed: int = 0
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        for name in ("warmup", "frozen_stride", "mask_weight", "rule_weight"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if self.max_gradient is not None and not self.max_gradient > 0:
            raise UserError(f"max_gradient is {self.max_gradient}; expected a number above 0, or none")
        for name in ("batch_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if self.max_steps < 0:
            raise UserError(f"max_steps is {self.max_steps}; expected 0 or more")
        if not self.learning_rate > 0:
            raise UserError(f"learning_rate is {self.learning_rate}; expected a number above 0")
        if self.schedule not in SCHEDULES:
            raise unknown_name("schedule", self.schedule, SCHEDULES)


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """How a photo becomes a mask; the defaults are the paper's: the network's own map, interpolated.

    Attributes:
        scales: sizes at which the network sees the photo, times its (limited) size; the maps are averaged.
        flip: also see it mirrored.
        prior: how strongly the photo's predicted tags weigh its map; 0 does not, 1 multiplies each class by its
            probability.
        refine: none, or a refiner with its options, such as crf or crf(iterations=5).
        refine_side: the refiner sees larger photos made this small, pixels.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    prior: float = 0.0
    refine: str = "none"
    refine_side: int = 512

    def __post_init__(self) -> None:
        if not self.scales or not all(0.1 <= scale <= 8 for scale in self.scales):
            raise UserError(f"scales are {self.scales}; expected one or more numbers from 0.1 to 8")
        if not 0 <= self.prior <= 10:
            raise UserError(f"prior is {self.prior}; expected 0 (none) to 10")
        if self.refine_side < 16:
            raise UserError(f"refine_side is {self.refine_side}; expected 16 or more pixels")


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed {seed}: expected 0 to {2**32 - 1}")


@dataclass(frozen=True, kw_only=True)
class DigitsOptions:
    """Table 1 and Figure 1 on scenes of handwritten digits: no download, minutes on two cores.

    Attributes:
        seed: of the scenes, the classifier and the training; the same seed gives the same result.
        out: folder for the table, the figures, the configuration and the models.
        ablations: also check the paper's claims, each by a run without it (table `ablations.md`).
        scenes: training scenes; a quarter as many for validation.
        pretrain_steps: updates of the classifier on single-digit pictures.
        max_steps: updates of MIL-FCN and of the oracle.
        device: auto, cpu, cuda or mps.
        resume: go on where an earlier run into the same folder stopped.
        overwrite: start anew in a folder that already holds a run.
    """

    seed: int = 0
    out: Path = Path("runs/digits")
    ablations: bool = False
    scenes: int = 1000
    pretrain_steps: int = 400
    max_steps: int = 150
    device: str = "auto"
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name, least in (("scenes", 4), ("pretrain_steps", 0), ("max_steps", 1)):
            if getattr(self, name) < least:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected {least} or more")
        _check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class VocOptions:
    """Table 1 and Figure 1 on PASCAL VOC; left alone, the options are the paper's own setting.

    Attributes:
        root: folder that holds VOCdevkit, VOC2011 or VOC2012, as the challenge's archives unpack.
        tags: tag file (columns image, tags, optionally split); none: XML annotations, else masks.
        classes: VOC classes to learn, with commas; the pixels of the others are void. None: all 20.
        backbone: network to cast: vgg16, squeezenet1_0, mobilenet_v2, resnet18, resnet50 or convnext_tiny.
        weights: imagenet (torchvision's download), or a .safetensors or .pth file in torchvision's layout.
        sbd: SBD's folder (benchmark_RELEASE); none looks below root.
        train_set: name of the training set; none: the paper's where SBD is at hand, else train.
        val_set: name of the set to score on; none: the one that belongs to the training set.
        year: VOC year, where root holds several.
        output_stride: pixels a place: 32, 16 or 8; none takes the recipe's.
        vgg_padding: fc6 padding of VGG: same, or the original's pad100.
        score_scale: multiplies the transferred rows, which changes no mask of theirs but keeps the softmax
            from saturating where a network's scores are large; none takes the recipe's (1 for VGG-16).
        rule: how MIL-FCN learns: max (the paper), another rule's name, or package.module:function.
        max_steps: updates of MIL-FCN and of the oracle.
        batch_size: photos an update.
        learning_rate: of MIL-FCN.
        score_rate: times the learning rate, for the score layer of both.
        oracle_learning_rate: of the oracle, which has its own best one.
        schedule: constant, or linear down to 0.
        longest_side: larger photos are made this small while training.
        seed: of the order of photos and of dropout.
        out: folder for the table, the figures, the configuration and the models.
        device: auto, cpu, cuda or mps.
        resume: go on where an earlier run into the same folder stopped.
        overwrite: start anew in a folder that already holds a run.
    """

    root: Path
    tags: Path | None = None
    classes: tuple[str, ...] | None = None
    backbone: str = "vgg16"
    weights: str = "imagenet"
    sbd: Path | None = None
    train_set: str | None = None
    val_set: str | None = None
    year: int | None = None
    output_stride: int | None = None
    vgg_padding: str = "same"
    score_scale: float | None = None
    rule: str = "max"
    max_steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    score_rate: float | None = None
    oracle_learning_rate: float | None = None
    schedule: str | None = None
    longest_side: int | None = None
    seed: int = 0
    out: Path = Path("runs/voc")
    device: str = "auto"
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        _check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Score masks against true masks, void excluded, one confusion matrix over the set.

    Give either `--pred` with `--truth`, or `--model` with a source of photos.

    Attributes:
        source: photos the model is scored on: a VOC folder, a folder for each tag, a table, COCO JSON, or a Label
            Studio export.
        pred: folder of predicted masks (palette PNG).
        truth: folder of true masks (PNG), named as the predictions or the photos are; with --model, none takes a VOC
            folder's own masks.
        labels: JSON file with the predictions' class names; none reads labels.json in or above the folder.
        truth_labels: voc, or a JSON file with the truth's class names; none reads labels.json in the folder of
            true masks, and else takes the predictions' or the model's.
        names: text file that lists the masks to score, one a line, as VOC's ImageSets do.
        model: model folder to predict with.
        tags: with --model, the source's file with tags, where it is not the source itself.
        split: with --model, only the photos of this split; none: val of PASCAL VOC, else every photo.
        kind: what the source is, where it could be several things.
        year: VOC year, where the source holds several.
        sbd: SBD's folder; none looks below the source.
        reading: scores (interpolated, then the top class) or labels (the coarse top class, interpolated).
        json: print JSON in place of the table.
        out: file for the JSON result.
        device: auto, cpu, cuda or mps.
    """

    source: Path | None = field(default=None, metadata={"positional": True})
    pred: Path | None = None
    truth: Path | None = None
    labels: Path | None = None
    truth_labels: str | None = None
    names: Path | None = None
    model: Path | None = None
    tags: Path | None = None
    split: str | None = None
    kind: str | None = None
    year: int | None = None
    sbd: Path | None = None
    reading: str = "scores"
    json: bool = False
    out: Path | None = None
    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class VocResultsOptions:
    """Masks of a VOC test set in the layout that the evaluation server takes.

    Attributes:
        model: model folder to predict with; its classes must be VOC's.
        root: VOC folder.
        out: folder for results/ and results.tgz.
        split: name of the set, as in ImageSets/Segmentation.
        year: VOC year, where root holds several.
        competition: comp6 (weights that saw other data, as ImageNet's) or comp5 (VOC's data alone).
        device: auto, cpu, cuda or mps.
        overwrite: write over an earlier result.
    """

    model: Path
    root: Path
    out: Path = Path("runs/voc-results")
    split: str = "test"
    year: int | None = 2012
    competition: str = "comp6"
    device: str = "auto"
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """Look at photos and tags before training: counts, unreadable photos, tags that cannot be told apart, time.

    Attributes:
        source: photos' folder, a folder for each tag, a table, COCO JSON, a VOC tree, or a Label Studio export.
        tags: file with the tags, where it is not the source itself.
        split: only the photos of this split.
        classes: tags to learn, with commas; none takes all.
        tags_are: complete (a tag that is not there is absent) or partial (it is unknown).
        no_background: the tags name everything in the photo; there is no background class.
        ignore_unknown_tags: leave out tags that are not among --classes.
        kind: what the source is, where it could be several things.
        mapping: YAML file from class names to ILSVRC categories.
        backbone: network whose training time is estimated.
        max_steps: steps that are estimated; none: those of the recipe best.
        max_pixels: larger photos are named, not decoded.
        device: auto, cpu, cuda or mps.
        json: print JSON in place of the report.
    """

    source: Path = field(metadata={"positional": True})
    tags: Path | None = None
    split: str | None = None
    classes: tuple[str, ...] | None = None
    tags_are: str = "complete"
    no_background: bool = False
    ignore_unknown_tags: bool = False
    kind: str | None = None
    mapping: Path | None = None
    backbone: str = "mobilenet_v2"
    max_steps: int | None = None
    max_pixels: int = 100_000_000
    device: str = "auto"
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Train on photos with tags; no mask is read. The result is a model folder for `milseg predict`.

    Attributes:
        source: photos' folder, a folder for each tag, a table, COCO JSON, a VOC tree, or a Label Studio export.
        tags: file with the tags, where it is not the source itself.
        out: the model folder.
        split: only the photos of this split.
        classes: tags to learn, with commas; none takes all.
        tags_are: complete (a tag that is not there is absent) or partial (it is unknown).
        no_background: the tags name everything in the photo; there is no background class.
        ignore_unknown_tags: leave out tags that are not among --classes.
        kind: what the source is, where it could be several things.
        mapping: YAML file from class names to ILSVRC categories, for names that ILSVRC does not know.
        backbone: network to cast; auto takes resnet50 on a GPU and mobilenet_v2 elsewhere.
        weights: imagenet (torchvision's download), a .safetensors or .pth file in torchvision's layout, or none.
        output_stride: pixels a place: 32, 16 or 8; none takes the recipe's.
        vgg_padding: fc6 padding of VGG: same, or the original's pad100.
        score_scale: multiplies the transferred rows; none takes the recipe's.
        recipe: paper (its rule alone), fast, or best (with a round on its own masks); none: best, and fast where a time
            budget is too short for it.
        rule: how to learn from tags: max (the paper), another rule's name, or package.module:function; options in
            parentheses.
        rounds: how often the network learns from its own masks after the rule; none takes the recipe's.
        refine: what the masks are refined by: none, or a refiner's name; none given takes the recipe's.
        frozen_stride: layers up to this output stride keep the classifier's weights; 0 trains all.
        max_steps: updates of the weights in all; none takes the recipe's.
        time_budget: train for about so long, such as 30m, 2h or 90s; the steps are counted from a trial.
        batch_size: photos an update.
        learning_rate: of the body's weights.
        score_rate: times the learning rate, for the score layer.
        momentum: of SGD.
        weight_decay: on weights, not on biases.
        schedule: constant, or linear down to 0.
        longest_side: larger photos are made this small, pixels; none: 320, and 512 on CUDA.
        flip: mirror half of the photos.
        hold_out: share of the photos kept from training, to select the best model by their tags.
        select_every: steps between selections; none: six in a run.
        checkpoint_every: steps between checkpoints.
        seed: of everything random.
        device: auto, cpu, cuda or mps.
        resume: go on where an earlier run into the same folder stopped.
        overwrite: start anew in a folder that already holds a run.
    """

    source: Path = field(metadata={"positional": True})
    tags: Path | None = None
    out: Path = Path("runs/train")
    split: str | None = None
    classes: tuple[str, ...] | None = None
    tags_are: str = "complete"
    no_background: bool = False
    ignore_unknown_tags: bool = False
    kind: str | None = None
    mapping: Path | None = None
    backbone: str = "auto"
    weights: str = "imagenet"
    output_stride: int | None = None
    vgg_padding: str = "same"
    score_scale: float | None = None
    recipe: str | None = None
    rule: str | None = None
    rounds: int | None = None
    refine: str | None = None
    frozen_stride: int | None = None
    max_steps: int | None = None
    time_budget: str | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    score_rate: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    schedule: str | None = None
    longest_side: int | None = None
    flip: bool = False
    hold_out: float = 0.1
    select_every: int | None = None
    checkpoint_every: int | None = None
    seed: int = 0
    device: str = "auto"
    resume: bool = False
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Masks of photos, as palette PNG, with overlays to look at and a table of what to review first.

    Attributes:
        inputs: photos, folders (with all below them) or patterns.
        model: model folder, as `milseg train` writes it, or hf://OWNER/NAME from the Hugging Face hub.
        out: folder for masks/, overlays/, predictions.csv and the other formats' files.
        format: files to write besides png: coco, labelstudio, cvat, yolo, npz, with commas.
        tags: file with tags that are known, in any form that training reads; the classes that it says are not in a
            photo are ruled out there. The result says so.
        tags_are: complete (a tag that is not there is absent) or partial (it may be there).
        ignore_unknown_tags: skip known tags that the model has no class for.
        adjust: more or less of single classes, such as cat=1,dog=-0.5; 1 makes a class e times as likely.
        refine: a refiner in place of the model's own, such as crf; or none, which is quicker.
        scales: sizes at which the network sees each photo, in place of the model's own, such as 1,1.5.
        max_pixels: larger photos are refused before decoding.
        device: auto, cpu, cuda or mps.
        resume: add the photos that an earlier run into the same folder did not finish.
        overwrite: write into a folder that already holds files; what an earlier run wrote there goes first, other
            files stay.
    """

    inputs: tuple[str, ...] = field(metadata={"positional": True})
    model: Path
    out: Path = Path("runs/masks")
    format: tuple[str, ...] = ("png",)
    tags: Path | None = None
    tags_are: str = "complete"
    ignore_unknown_tags: bool = False
    adjust: str | None = None
    refine: str | None = None
    scales: tuple[float, ...] | None = None
    max_pixels: int = 100_000_000
    device: str = "auto"
    resume: bool = False
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Rules side by side: each trained alike from tags, scored plain, mirrored, with prior and refined, over seeds.

    Attributes:
        source: photos with tags, as `milseg train` takes them; or digits, scenes made here.
        tags: file with the tags, where it is not the source itself.
        truth: folder of true masks to score on; only scoring opens it.
        truth_labels: class names of the true masks: voc, or a JSON file; none: labels.json there, else the tags.
        split: photos to learn from.
        val_split: photos to score on, where the source has splits and masks of its own.
        classes: tags to learn, with commas; none takes all.
        ignore_unknown_tags: leave out tags that are not among --classes.
        kind: what the source is, where it could be several things.
        rules: names with commas, options in parentheses; oracle learns from the masks, cam is a class activation map
            with the best threshold.
        seeds: with commas; the table gives mean and range.
        rounds: after each rule, so many rounds on its own masks.
        max_steps: updates of each rule, and of each round.
        batch_size: photos an update.
        learning_rates: with several, each rule takes its best by the tags of held-out photos.
        longest_side: larger photos are made this small.
        backbone: network to cast.
        weights: imagenet, a file, or none.
        hold_out: share of the photos kept from training, to calibrate and select by their tags.
        scenes: training scenes of digits.
        out: folder for compare.json, compare.md, compare.png and the runs.
        device: auto, cpu, cuda or mps.
        resume: go on with the runs that an earlier call into the same folder did not finish.
        overwrite: start anew in a folder that already holds a comparison.
    """

    source: Path = field(metadata={"positional": True})
    tags: Path | None = None
    truth: Path | None = None
    truth_labels: str | None = None
    split: str | None = None
    val_split: str | None = None
    classes: tuple[str, ...] | None = None
    ignore_unknown_tags: bool = False
    kind: str | None = None
    rules: tuple[str, ...] = ("max", "log-sum-exp-probs(absent=1)", "weighted-pooling")
    seeds: tuple[int, ...] = (0,)
    rounds: int = 0
    max_steps: int = 150
    batch_size: int = 16
    learning_rates: tuple[float, ...] = (1e-3,)
    longest_side: int = 320
    backbone: str = "mobilenet_v2"
    weights: str = "imagenet"
    hold_out: float = 0.1
    scenes: int = 1000
    out: Path = Path("runs/compare")
    device: str = "auto"
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        for seed in self.seeds:
            _check_seed(seed)
        for name in ("max_steps", "batch_size", "longest_side", "scenes"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected 1 or more")
        if not self.seeds or not self.learning_rates:
            raise UserError("--seeds and --learning-rates: expected one or more numbers")
        if not 0 <= self.rounds <= 20:
            raise UserError(f"--rounds {self.rounds}: expected 0 to 20")


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """Names that the other commands take: backbones, rules, sources, formats."""


def seconds_of(text: str) -> float:
    """Seconds of a duration such as 90s, 30m, 2h, 1h30m; a bare number is minutes.

    >>> seconds_of("1h30m"), seconds_of("45")
    (5400.0, 2700.0)
    """
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if (
        not parts
        or "".join(a + b for a, b in parts) != text.strip()
        or (len(parts) > 1 and "" in dict(parts).values())
    ):
        raise UserError(f"duration {text!r}: expected such as 90s, 30m or 1h30m")
    return sum(float(amount) * units[unit or "m"] for amount, unit in parts)


Options = TypeVar("Options")


def overridden(config: Options, **given: Any) -> Options:
    """The dataclass with those of the given values that are not None, for options that default to a recipe's.

    >>> overridden(TrainConfig(max_steps=5), max_steps=None, seed=3).max_steps
    5
    """
    known = {field.name for field in fields(config)}  # type: ignore[arg-type]
    assert set(given) <= known, set(given) - known
    return replace(config, **{key: value for key, value in given.items() if value is not None})  # type: ignore[type-var]
