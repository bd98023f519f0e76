"""A segmentation as the API answers it: palette PNG, or JSON that is COCO's and a little more."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import torch
from PIL import Image

from milseg._version import __version__
from milseg.annotations.coco import box
from milseg.annotations.rle import coco_rle
from milseg.data.bags import ABSENT, PRESENT
from milseg.data.image import UInt8
from milseg.data.masks import mask_image, palette
from milseg.data.overlay import mask_colours
from milseg.inference.segmenter import Segmentation, Segmenter
from milseg.rules import RULES, find_rule
from milseg.rules.loss_map import loss_map, shown_weights

PLACES = 40  # of a class, the heaviest, that the page marks

# Rules whose choice can be shown for one photo by itself: they have weights on the loss map, and need its tags alone.
SHOWN_RULES = tuple(
    name
    for name, row in RULES.items()
    if row.supervision == "tags"
    and not (row.raw_scores or row.learned or row.needs_segments or row.sees_batch or row.term)
)


def png(mask: UInt8) -> bytes:
    """A mask uint8 [H, W] as the palette PNG that `milseg predict` writes."""
    out = io.BytesIO()
    mask_image(mask).save(out, format="PNG", optimize=False)
    return out.getvalue()


def as_json(found: Segmentation, name: str) -> dict[str, Any]:
    """COCO's `images`, `annotations` and `categories` for one photo, and what the model says of it besides."""
    height, width = found.mask.shape
    shown = dict(found.tags)
    first = 1 if found.classes[:1] == ("background",) else 0
    annotations: list[dict[str, Any]] = []
    for number in np.unique(found.mask).tolist():
        if number < first:
            continue
        pixels = found.mask == number
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": 1,
                "category_id": number + 1 - first,
                "segmentation": coco_rle(pixels),
                "area": int(pixels.sum()),
                "bbox": box(pixels),
                "iscrowd": 0,
                "score": round(shown[found.classes[number]], 6),
            }
        )
    return {
        "info": {"description": f"Masks predicted by milseg {__version__}"},
        "licenses": [],
        "images": [{"id": 1, "file_name": name, "width": width, "height": height}],
        "annotations": annotations,
        "categories": [
            {"id": i, "name": label, "supercategory": ""}
            for i, label in enumerate(found.classes[first:], start=1)
        ],
        "tags": [
            {"name": label, "confidence": round(sure, 6), "area": round(found.areas[label], 6)}
            for label, sure in found.tags
        ],
        "tags_given": found.tags_given,
        "confidence": round(found.confidence, 6),
    }


def heat_maps(found: Segmentation) -> dict[str, Any]:
    """Each class's probability at each place of the coarse map, as one grey PNG a class that the model may show.

    Returns:
        "box": where the map lies on the photo, [x, y, width, height] in pixels, its outermost places included;
        "maps": class -> data address of a grey PNG [h, w], 255 for probability 1.
    """
    p = torch.from_numpy(found.scores).softmax(dim=0).numpy()
    open_classes = [bool(np.isfinite(values).any()) for values in found.scores]
    maps = {}
    for name, values, shown in zip(found.classes, p, open_classes, strict=True):
        if shown:
            out = io.BytesIO()
            Image.fromarray(np.rint(255 * values).astype(np.uint8)).save(out, format="PNG")
            maps[name] = "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
    return {"box": map_box(found), "maps": maps}


def map_box(found: Segmentation) -> list[float]:
    """Where the coarse map lies on the photo, [x, y, width, height] in pixels of the photo.

    Place i is centred on pixel offset + i * stride of the network's input, and reaches half a stride to each side.
    """
    height, width = found.mask.shape
    down, across = height / found.input_size[0], width / found.input_size[1]
    start = found.offset + 0.5 - found.stride / 2
    rows, columns = found.scores.shape[1:]
    sides = (start * across, start * down, columns * found.stride * across, rows * found.stride * down)
    return [round(side, 3) for side in sides]


def chosen_instances(
    segmenter: Segmenter, found: Segmentation, present: list[str], rule: str
) -> dict[str, Any]:
    """The places that a rule would teach if the photo's tags were `present`: its weights on the loss map.

    Args:
        present: class names; the background is added.
        rule: one of `SHOWN_RULES`.

    Returns:
        "places": for each present class its heaviest places with x, y (pixels of the photo, the place's centre),
        weight and loss (-log of the probability, nats).
    """
    # A copy: what inference mode made can take no gradient.
    scores = (
        segmenter.score_map(found.photo).scores[None].clone()
        if found.tags_given
        else torch.tensor(found.scores)[None]
    )
    names = [n for n in found.classes if n in present or n == "background"]
    tags = torch.tensor([[PRESENT if n in names else ABSENT for n in found.classes]], dtype=torch.int8)
    valid = torch.ones(1, *scores.shape[2:], dtype=torch.bool)
    entry = find_rule(rule)
    weights = shown_weights(lambda s: entry.rule(s, tags, valid), scores, tags)[0]
    losses = loss_map(scores, tags)[0]
    left, top, width, height = map_box(found)
    columns, rows = width / scores.shape[3], height / scores.shape[2]
    places = []
    for name in names:
        number = found.classes.index(name)
        values, order = weights[number].flatten().sort(descending=True, stable=True)
        for value, place in zip(values[:PLACES].tolist(), order[:PLACES].tolist(), strict=True):
            # What float32 leaves of the paper's zero weights is no choice.
            if value < 1e-5 * float(weights.max()):
                break
            row, column = divmod(place, scores.shape[3])
            places.append(
                {
                    "name": name,
                    "x": round(left + (column + 0.5) * columns, 2),
                    "y": round(top + (row + 0.5) * rows, 2),
                    "weight": round(value, 6),
                    "loss": round(float(losses[number, row, column]), 4),
                }
            )
    return {"rule": rule, "present": names, "places": places}


def described_classes(classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Number and name of each class, its colour in PNG masks, and that of overlays, which every eye can tell apart."""
    colours, over = palette(), mask_colours(classes)
    return [
        {"number": i, "name": name, "colour": _hex(colours[i]), "overlay_colour": _hex(over[i])}
        for i, name in enumerate(classes)
    ]


def _hex(colour: UInt8) -> str:
    return "#" + bytes(colour.tolist()).hex()
