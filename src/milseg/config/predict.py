"""Settings of `milseg predict`, `milseg merge` and `milseg list`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Masks of photos, as palette PNG, with overlays to look at and a table of what to review first.

    Attributes:
        inputs: photos, folders (with all below them), patterns, or shards (also at an address).
        model: model folder, as `milseg train` writes it, hf://OWNER/NAME from the Hugging Face hub, or an .onnx file of
            `milseg export`.
        out: folder for masks/, overlays/, predictions.csv and the other formats' files.
        format: files to write besides png: coco, labelstudio, cvat, yolo, npz, with commas.
        labelstudio_prefix: where Label Studio finds the photos: their folder below its document root, such as pets/new,
            or an address to which each photo's path is added.
        tags: file with tags that are known, in any form that training reads; the classes that it says are not in a
            photo are ruled out there. The result says so.
        tags_are: complete (a tag that is not there is absent) or partial (it may be there).
        ignore_unknown_tags: skip known tags that the model has no class for.
        class_bias: more or less of single classes, such as cat=1,dog=-0.5; 1 makes a class e times as likely.
        random_walk: steps of the random walk by affinity, in place of the model's own; 0 for none, which is quicker.
        refine: a refiner in place of the model's own, such as crf; or none, which is quicker.
        scales: sizes at which the network sees each photo, in place of the model's own, such as 1,1.5.
        longest_side: the network sees larger photos made this small, pixels, in place of the model's own; 0 shows them
            as they are, in tiles where they are large.
        no_overlays: leave overlays/ out: masks alone, which is quicker.
        workers: photos that are segmented at the same time; 0 takes one for each processor.
        shard: this machine's part of the photos, as 2/8, into a folder of its own below OUT; milseg merge OUT joins
            them.
        max_pixels: larger photos are refused before decoding.
        cache: folder for shards fetched from elsewhere, and for indexes; none: milseg/shards in the user's cache.
        cache_size: how much of fetched shards is kept, such as 20GB.
        device: auto, cpu, cuda or mps.
        resume: add the photos that an earlier run into the same folder did not finish.
        overwrite: write into a folder that already holds files; what an earlier run wrote there goes first, other
            files stay.
    """

    inputs: tuple[str, ...] = field(metadata={"positional": True})
    model: Path
    out: Path = Path("runs/masks")
    format: tuple[str, ...] = ("png",)
    labelstudio_prefix: str | None = None
    tags: Path | None = None
    tags_are: str = "complete"
    ignore_unknown_tags: bool = False
    class_bias: str | None = None
    random_walk: int | None = None
    refine: str | None = None
    scales: tuple[float, ...] | None = None
    longest_side: int | None = None
    no_overlays: bool = False
    workers: int = 0
    shard: str | None = None
    max_pixels: int = 100_000_000
    cache: Path | None = None
    cache_size: str = "20GB"
    device: str = "auto"
    resume: bool = False
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """One prediction folder from those that milseg predict --shard made, on however many machines.

    Attributes:
        folders: the output folder whose shards are to be merged in place; or with --out several folders, of shards
            or holding shards, which stay as they are.
        out: folder for the whole; none merges within the one folder given.
        resume: add to what an earlier merge, or prediction, left in --out.
    """

    folders: tuple[str, ...] = field(metadata={"positional": True})
    out: Path | None = None
    resume: bool = False


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """Names that the other commands take: backbones, rules, sources, formats."""
