"""Settings of `milseg reproduce` and `milseg voc-results`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from milseg.config.configs import check_above_zero, check_least, check_seed
from milseg.errors import UserError


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
        check_seed(self.seed)


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
        schedule: of the learning rate: constant, linear, cosine or another name, options in parentheses.
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
        check_seed(self.seed)
        check_least(self, max_steps=1, batch_size=1, longest_side=16)
        check_above_zero(self, "learning_rate", "score_rate", "oracle_learning_rate", "score_scale")


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
