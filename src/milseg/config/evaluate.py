"""Settings of `milseg evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Score masks against true masks, void excluded, one confusion matrix over the set.

    Give either `--pred` with `--truth`, or `--model` with a source of photos.

    Attributes:
        source: photos the model is scored on: a VOC folder, a folder for each tag, a table, COCO JSON, a Label
            Studio export, or shards.
        pred: folder of predicted masks (palette PNG).
        truth: folder of true masks (PNG), named as the predictions or the photos are; with --model, none takes a VOC
            folder's own masks.
        labels: voc, or a JSON file with the predictions' class names; none reads labels.json in or above the folder.
        truth_labels: voc, or a JSON file with the truth's class names; none reads labels.json in the folder of
            true masks, and else takes the predictions' or the model's.
        pred_values: as truth_values, for the predicted masks.
        truth_values: what each value of the true masks means, such as 0=background,255=cat, in place of names in
            order; void names what is not scored.
        names: text file that lists the masks to score, one a line, as VOC's ImageSets do.
        model: model folder to predict with.
        tags: with --model, the source's file with tags, where it is not the source itself.
        split: with --model, only the photos of this split; none: val of PASCAL VOC, else every photo.
        kind: what the source is, where it could be several things.
        tags_key: key of the tags in the JSON files of shards.
        cache: folder for shards fetched from elsewhere, and for indexes; none: milseg/shards in the user's cache.
        cache_size: how much of fetched shards is kept, such as 20GB.
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
    labels: str | None = None
    truth_labels: str | None = None
    pred_values: tuple[str, ...] | None = None
    truth_values: tuple[str, ...] | None = None
    names: Path | None = None
    model: Path | None = None
    tags: Path | None = None
    split: str | None = None
    kind: str | None = None
    tags_key: str = "tags"
    cache: Path | None = None
    cache_size: str = "20GB"
    year: int | None = None
    sbd: Path | None = None
    reading: str = "scores"
    json: bool = False
    out: Path | None = None
    device: str = "auto"
