"""What there is to choose from, in words; imports nothing heavy, so that `milseg list` answers at once.

Tests hold these tables against those that do the work.
"""

from __future__ import annotations

from milseg.annotations import FORMATS
from milseg.config import EXPORT_SUFFIXES, PRECISIONS, READINGS, SCHEDULES, ListOptions
from milseg.config.values import Choice

BACKBONES: dict[str, str] = {
    "vgg16": "the paper's network; strides 32, 16, 8; 138 million weights",
    "squeezenet1_0": "smallest download, 5 MB; strides 16, 8; train with --score-scale below 1",
    "mobilenet_v2": "the default on a CPU; strides 32, 16, 8",
    "resnet18": "strides 32, 16, 8",
    "resnet50": "the default on a GPU; strides 32, 16, 8",
    "convnext_tiny": "strides 32, 16, 8",
    "tiny": "for tests and digits; no published weights; strides 4, 2",
}
RULES: dict[str, str] = {
    "max": "one most probable place of each present class (the paper)",
    "top-k": "the k most probable places of each present class; k below 1 is a share",
    "average": "every place for every present class",
    "binary-max": "one binary MIL a class on its top-scoring place, no competition",
    "log-sum-exp-scores": "soft maximum of the scores, then a softmax over the classes",
    "log-sum-exp-probs": "soft maximum of the probabilities",
    "average-scores": "average of the scores, then a softmax over the classes (CAM)",
    "wildcat": "the k highest and the k lowest scores, one logistic loss a class",
    "weighted-pooling": "scores weighted by the probabilities, with a penalty on small areas (1-stage)",
    "noisy-or": "the probability that some place shows the class",
    "rank-pooling": "probabilities weighted by their rank, absent classes down (SEC)",
    "max-margin": "one hinge a class on its top-scoring place (MI-SVM)",
    "attention": "learned weights on the places, gated or not (ABMIL)",
    "hard-negatives": "added to a rule: absent classes down where they score highest",
    "consistency": "added to a rule: the bags of a batch that share a tag agree on it",
    "em-fixed": "present classes get a fixed bonus, the top class is the target",
    "em-adapt": "targets in which each present class wins its share of the places",
    "ccnn": "the nearest soft targets whose class areas meet bounds",
    "segment-max": "max among superpixels",
    "segment-top-k": "top-k among superpixels",
    "segment-average": "average among superpixels",
    "segment-em-adapt": "em-adapt among superpixels",
    "segment-ccnn": "ccnn among superpixels",
    "oracle": "every pixel, from masks; for comparison",
}
REFINERS: dict[str, str] = {
    "crf": "fully connected CRF: like colours and near pixels agree",
    "pamr": "each pixel follows its most similar neighbours",
    "superpixels": "the mean over each SLIC segment",
}
RECIPES: dict[str, str] = {
    "paper": "the paper's rule alone, its maps interpolated; minutes",
    "fast": "weighted pooling, several views, a walk among alike places, CRF; minutes",
    "best": "fast with more steps and two rounds on its own masks; about an hour on two cores; the default",
}
SOURCES: dict[str, str] = {
    "folder": "a folder for each tag",
    "table": "CSV, TSV or JSON lines: image,tags[,split], or a column for each tag",
    "coco": "COCO JSON",
    "voc": "a VOC tree with XML annotations",
    "label_studio": "a Label Studio JSON export",
    "shards": "tar shards, also at an address: milseg shard, webdataset, img2dataset",
}
# option -> the names it takes, which the command line checks before anything is read
CHOICES: dict[str, Choice] = {
    "backbone": Choice(kind="backbone", names=BACKBONES),
    "recipe": Choice(kind="recipe", names=RECIPES),
    "rule": Choice(kind="rule", names=RULES, calls=True),
    "rules": Choice(kind="rule", names=(*RULES, "cam"), calls=True),
    "refine": Choice(kind="refiner", names=("none", *REFINERS), calls=True),
    "kind": Choice(kind="kind", names=SOURCES),
    "format": Choice(
        kind="format", names=FORMATS, meant={"label-studio": "labelstudio", "label_studio": "labelstudio"}
    ),
    "precision": Choice(
        kind="precision", names=PRECISIONS, meant={"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
    ),
    "schedule": Choice(kind="schedule", names=SCHEDULES),
    "reading": Choice(kind="reading", names=READINGS),
    "tags_are": Choice(kind="word for tags", names=("complete", "partial")),
    "vgg_padding": Choice(kind="VGG padding", names=("same", "pad100")),
    "competition": Choice(kind="VOC competition", names=("comp5", "comp6")),
    "device": Choice(
        kind="device", names=("auto", "cpu", "cuda", "mps"), meant={"gpu": "cuda", "metal": "mps"}
    ),
    "to": Choice(kind="format", names=EXPORT_SUFFIXES),
}


def listing() -> str:
    """The tables as text."""
    parts = {
        "backbones (--backbone)": BACKBONES,
        "recipes (--recipe)": RECIPES,
        "rules (--rule)": RULES,
        "refiners (--refine)": REFINERS,
        "sources (found by looking; --kind)": SOURCES,
        "formats (--format)": {name: row.about for name, row in FORMATS.items()},
    }
    lines = []
    for title, table in parts.items():
        width = max(14, *map(len, table))
        lines += [title, *(f"  {name:{width}} {about}" for name, about in table.items()), ""]
    return "\n".join(lines).rstrip()


def show(options: ListOptions) -> None:
    """`milseg list`."""
    print(listing())
