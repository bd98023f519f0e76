"""From a classifier's rows to the score layer of a new task (paper, section 4: "transferring the output layer
parameters for the classes common to both PASCAL and ILSVRC improves results").

The background has no row in a classifier: it starts at zero, and ties go to it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from milseg.errors import UserError, unknown_name
from milseg.models.backbones import cast_classifier
from milseg.models.fcn import FCN
from milseg.models.weights import imagenet_categories, load_classifier
from milseg.utils.files import PathLike, as_path
from milseg.utils.yaml import parse_yaml

BACKGROUND_NAME = "background"
# True: the classifier's rows; "zero": all rows zero, the paper's "no classifier"; "random": a small random
# start.
Transfer = Literal[True, "zero", "random"]
# Classes without a row, and the random start: this times the standard deviation of the classifier's weights.
SMALL = 0.1
# Other words for VOC's classes (COCO's among them).
SYNONYMS = {
    "airplane": "aeroplane",
    "bike": "bicycle",
    "couch": "sofa",
    "motorcycle": "motorbike",
    "people": "person",
    "potted plant": "pottedplant",
    "tv": "tvmonitor",
    "tv monitor": "tvmonitor",
    "tv/monitor": "tvmonitor",
}
_WNID = re.compile(r"n\d{8}")


def _data(name: str) -> Any:
    """A checked-in table beside this file."""
    return yaml.safe_load(resources.files("milseg.models").joinpath(name).read_text(encoding="utf-8"))


@cache
def voc_synsets() -> dict[str, tuple[dict[str, Any], ...]]:
    """The checked-in table: VOC class to its ILSVRC synsets, each with wnid, index and name."""
    return {name: tuple(rows) for name, rows in _data("voc_synsets.yaml").items()}


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """The WordNet ids of ILSVRC's 1000 classes, in torchvision's order (which is theirs, sorted)."""
    return tuple(_data("imagenet_wnids.yaml")["wnids"].split())


def plain(name: str) -> str:
    """A name as it is compared: no difference of case, and underscores and hyphens are blanks.

    >>> plain("Siamese_cat") == plain("siamese-cat") == "siamese cat"
    True
    """
    return " ".join(re.sub(r"[_\-]+", " ", name).casefold().split())


def mapping_for(
    classes: Sequence[str], categories: Sequence[str], user_yaml: Path | None = None
) -> dict[str, tuple[int, ...]]:
    """Which rows of a classifier stand for each class.

    In this order: what the user's own file says of the class; the category of the same name; for ILSVRC's
    categories, the table of VOC classes (and common other words for them). A class found nowhere has no rows.

    Args:
        classes: class names; "background" never has rows.
        categories: what the classifier's rows stand for, in order.
        user_yaml: a YAML file, class: [categories], each a name, a row number from 0, or (for ILSVRC) a
            WordNet id. It may speak of classes that are not in `classes`.

    Returns:
        Row numbers for each class, in the order of `classes`; empty where there are none.

    Raises:
        UserError: the file cannot be read, or names a category that the classifier does not have.

    >>> mapping_for(["background", "horse", "Tabby", "unicorn"], imagenet_categories())
    {'background': (), 'horse': (339,), 'Tabby': (281,), 'unicorn': ()}
    """
    own = {} if user_yaml is None else read_mapping(user_yaml, categories)
    voc = voc_synsets() if tuple(categories) == imagenet_categories() else {}
    mapping: dict[str, tuple[int, ...]] = {}
    for name in classes:
        key = plain(name)
        synsets = voc.get(SYNONYMS.get(key, key.replace(" ", "")), ())
        if name == BACKGROUND_NAME:
            mapping[name] = ()
        elif key in own:
            mapping[name] = own[key]
        else:
            same = category_rows(name, categories, where=name)
            mapping[name] = same or tuple(row["index"] for row in synsets)
    return mapping


def category_rows(name: str, categories: Sequence[str], *, where: str) -> tuple[int, ...]:
    """The row of the category called `name`, letter for letter or else as `plain` reads it; () for none.

    Raises:
        UserError: several categories answer to it, which `where` asked for.
    """
    rows = tuple(i for i, category in enumerate(categories) if category == name)
    rows = rows or tuple(i for i, category in enumerate(categories) if plain(category) == plain(name))
    if len(rows) > 1:
        found = ", ".join(f"{i} {categories[i]!r}" for i in rows)
        raise UserError(
            f"{where}: several categories are called so ({found}); give the row number in a mapping file"
        )
    return rows


def read_mapping(path: Path, categories: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The user's file, class: [categories], as row numbers by `plain` class name.

    Raises:
        UserError: see `mapping_for`.
    """
    try:
        entries = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such mapping file") from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read as YAML ({error}); expected lines such as 'dog: [pug]'"
        ) from None
    if not isinstance(entries, dict):
        raise UserError(f"{path}: holds {type(entries).__name__}; expected lines such as 'dog: [pug]'")
    mapping = {}
    for name, wanted in entries.items():
        items = wanted if isinstance(wanted, list) else [wanted]
        rows = [row for item in items for row in _rows_of(item, categories, where=f"{path}: {name}")]
        mapping[plain(str(name))] = tuple(dict.fromkeys(rows))
    return mapping


def _rows_of(item: object, categories: Sequence[str], *, where: str) -> list[int]:
    """The rows one entry of the user's file means."""
    if isinstance(item, int) and not isinstance(item, bool):
        if not 0 <= item < len(categories):
            raise UserError(f"{where}: no row {item}; the classifier's rows are 0 to {len(categories) - 1}")
        # A classifier of digits has the category "7": a bare 7 in YAML is still a row number.
        return [item]
    if not isinstance(item, str):
        raise UserError(f"{where}: {item!r} is no category; give names, row numbers or WordNet ids")
    if _WNID.fullmatch(item) and tuple(categories) == imagenet_categories():
        if item not in imagenet_wnids():
            raise UserError(
                f"{where}: {item} is none of ILSVRC's 1000 synsets; name the nearest category instead"
            )
        return [imagenet_wnids().index(item)]
    rows = list(category_rows(item, categories, where=where))
    if not rows:
        names = [plain(category) for category in categories]
        near = difflib.get_close_matches(plain(item), names, n=1, cutoff=0.0)
        hint = f"; the nearest is {categories[names.index(near[0])]!r}" if near else ""
        raise UserError(f"{where}: the classifier has no category {item!r}{hint}")
    return rows


@dataclass(frozen=True, kw_only=True)
class TransferReport:
    """What each class of a score layer started from.

    Attributes:
        start: "transfer", "zero" or "random".
        rows: for each class the (row number, category) pairs whose rows were combined; empty where there
            were none.
    """

    start: str
    rows: Mapping[str, tuple[tuple[int, str], ...]] = field(default_factory=dict)

    @property
    def without_rows(self) -> tuple[str, ...]:
        """Classes, other than the background, that no row was found for."""
        return tuple(name for name, rows in self.rows.items() if not rows and name != BACKGROUND_NAME)

    def __str__(self) -> str:
        width = max(map(len, self.rows), default=0)
        return "\n".join(f"{name:<{width}}  {self._line(name)}" for name in self.rows)

    def _line(self, name: str) -> str:
        rows = self.rows[name]
        if self.start == "zero" or name == BACKGROUND_NAME:
            return "zero"
        if not rows:
            return "small random start" if self.start == "random" else "none: starts small"
        shown = [f"{index} {category}" for index, category in rows]
        if len(shown) > 5:
            shown = [*shown[:3], "...", shown[-1]]
        return f"{len(rows)} row{'s' if len(rows) > 1 else ''}: {', '.join(shown)}"


def mean_row(rows: torch.Tensor) -> torch.Tensor:
    """The mean of rows [n, D + 1]: its score is the mean of theirs."""
    return rows.mean(0)


def rescaled_row(rows: torch.Tensor) -> torch.Tensor:
    """The mean of rows [n, D + 1], as long as they are on average.

    The mean of many rows that point apart is short: a class of 118 rows would score lower than one of a
        single row.
    """
    mean = rows.mean(0)
    length: torch.Tensor = rows[:, :-1].norm(dim=1).mean() / mean[:-1].norm().clamp_min(1e-12)
    return mean * length


COMBINE: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {"mean": mean_row, "rescaled": rescaled_row}


def transfer_rows(
    weight: torch.Tensor,
    bias: torch.Tensor,
    classes: Sequence[str],
    mapping: Mapping[str, Sequence[int]],
    *,
    categories: Sequence[str] | None = None,
    combine: str = "mean",
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, TransferReport]:
    """Combine a classifier's rows into a new score layer's.

    The background's row and bias are zero. A class without rows starts from a normal distribution of `SMALL`
    times the classifier's standard deviation, bias zero: next to the others it is nearly a second
    background, but not the same as it, so that it can learn.

    Args:
        weight: float [K, D], the classifier's rows.
        bias: float [K].
        classes: the new layer's classes, in order.
        mapping: rows of each class, as `mapping_for` gives them.
        categories: what the rows stand for, for the report; None: their numbers.
        combine: "mean", or "rescaled" (see `COMBINE`).
        seed: of the classes that start small.

    Returns:
        weight float [C, D], bias float [C], and the report.

    Raises:
        UserError: an unknown `combine`.
    """
    if combine not in COMBINE:
        raise unknown_name("way to combine rows", combine, COMBINE)
    names = [str(i) for i in range(len(weight))] if categories is None else list(categories)
    rows = torch.cat([weight.detach(), bias.detach()[:, None]], dim=1)
    new_weight, new_bias = small_rows(weight, classes, seed=seed)
    for i, name in enumerate(classes):
        chosen = list(mapping.get(name, ()))
        if chosen:
            combined = COMBINE[combine](rows[chosen])
            new_weight[i], new_bias[i] = combined[:-1], combined[-1]
    taken = {name: tuple((k, names[k]) for k in mapping.get(name, ())) for name in classes}
    return new_weight, new_bias, TransferReport(start="transfer", rows=taken)


def small_rows(
    weight: torch.Tensor, classes: Sequence[str], *, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Small random rows [C, D] beside `weight` [K, D], zero for the background, and biases [C] of zero."""
    generator = torch.Generator().manual_seed(seed)
    std = SMALL * float(weight.detach().std())
    rows = torch.randn(len(classes), weight.shape[1], generator=generator) * std
    for i, name in enumerate(classes):
        if name == BACKGROUND_NAME:
            rows[i] = 0.0
    return rows, torch.zeros(len(classes))


def transfer_score_layer(
    model: FCN,
    classes: Sequence[str],
    categories: Sequence[str],
    *,
    transfer: Transfer = True,
    mapping: Path | Mapping[str, Sequence[int]] | None = None,
    combine: str = "mean",
    seed: int = 0,
) -> TransferReport:
    """Give a cast classifier the score layer of a new task, in place.

    Args:
        model: a network whose score layer holds the classifier's rows.
        classes: the new classes, "background" first where there is one.
        categories: what the rows stand for; empty: they mean nothing, and no class has any.
        transfer: True, "zero" or "random"; see `Transfer`.
        mapping: the user's YAML file, or row numbers by class; None: see `mapping_for`.
        combine: see `transfer_rows`.
        seed: of small random rows.

    Returns:
        What was done, for each class.
    """
    assert not categories or len(categories) == model.classes, (len(categories), model.classes)
    old = model.score_layer
    assert old.bias is not None
    weight, bias = old.weight.detach().flatten(1), old.bias.detach()
    if transfer is True:
        rows = mapping if isinstance(mapping, Mapping) else mapping_for(classes, categories, mapping)
        new_weight, new_bias, report = transfer_rows(
            weight, bias, classes, rows, categories=categories or None, combine=combine, seed=seed
        )
    else:
        report = TransferReport(start=transfer, rows=dict.fromkeys(classes, ()))
        new_weight, new_bias = small_rows(weight, classes, seed=seed)
        if transfer == "zero":
            new_weight.zero_()
    model.set_rows(new_weight, new_bias)
    return report


def build_model(
    backbone: str,
    classes: Sequence[str],
    *,
    weights: PathLike | None = None,
    transfer: Transfer = True,
    categories: Sequence[str] | None = None,
    mapping: PathLike | None = None,
    combine: str = "mean",
    output_stride: int | None = None,
    vgg_padding: str = "same",
    frozen_batch_norm: bool = True,
    seed: int = 0,
) -> tuple[FCN, TransferReport]:
    """A network for `classes`, from a pre-trained classifier.

    Args:
        backbone: a name in `BACKBONES`.
        classes: class names, "background" first where there is one.
        weights, categories: see `load_classifier`. Without weights no class has a row to start from.
        transfer, mapping, combine: see `transfer_score_layer`.
        output_stride, vgg_padding, frozen_batch_norm: see `cast_classifier`.
        seed: of everything random.

    Returns:
        The network, in training mode (batch norm frozen unless asked otherwise), and what its rows started
        from.

    Raises:
        UserError: what the functions above raise, and an unknown `transfer`.

    >>> model, report = build_model("tiny", ["background", "cat"], transfer="zero")
    >>> print(report)
    background  zero
    cat         zero
    """
    if transfer is not True and transfer not in ("zero", "random"):
        raise UserError(f"transfer is {transfer!r}; expected True, 'zero' or 'random'")
    twice = sorted({name for name in classes if list(classes).count(name) > 1})
    if twice:
        raise UserError(f"a class is named twice: {', '.join(twice)}")
    weights = weights if weights is None or isinstance(weights, str) else as_path(weights)
    mapping = None if mapping is None else as_path(mapping)
    network, names = load_classifier(backbone, weights, categories=categories, seed=seed)
    model = cast_classifier(
        backbone,
        network,
        output_stride=output_stride,
        vgg_padding=vgg_padding,
        frozen_batch_norm=frozen_batch_norm,
    )
    meaningful = names if weights is not None else ()
    report = transfer_score_layer(
        model, classes, meaningful, transfer=transfer, mapping=mapping, combine=combine, seed=seed
    )
    return model, report
