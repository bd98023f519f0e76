"""Pictures: the paper's Figure 1, training curves, loss maps with their selected places, bars of scores.

Every function draws on a figure of its own and writes one PNG atomically; no global plotting state is
touched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from milseg.data.bags import VOID
from milseg.data.image import UInt8
from milseg.data.overlay import legend, mask_colours
from milseg.utils.files import atomic_path

_DPI = 150
_CELL, _GAP, _TITLE = 2.4, 0.08, 0.3  # inches
_FONT = 10
_GREY = 190


def figure1(
    rows: Sequence[Sequence[UInt8]],
    classes: Sequence[str],
    path: Path,
    *,
    titles: Sequence[str] = ("input", "ground truth", "MIL-FCN"),
) -> None:
    """Photos with their masks, a row each, in the order of the paper's Figure 1: input, ground truth, output.

    Args:
        rows: for each photo uint8 [H, W, 3] and then masks uint8 [h, w], as many as there are titles in all.
        classes: the masks' classes; the legend names those that appear. Void is striped.
        titles: one for each column.

    Raises:
        ValueError: no rows, or a row with another number of pictures than there are titles.
    """
    if not rows or any(len(row) != len(titles) for row in rows):
        raise ValueError(f"expected rows of {len(titles)} pictures, got rows of {[len(row) for row in rows]}")
    entries = legend((mask for row in rows for mask in row[1:]), classes)
    width = len(titles) * (_CELL + _GAP) + _GAP
    # Tall photos are drawn narrower, so that no row takes more than a square and a half.
    heights = [min(_CELL * row[0].shape[0] / row[0].shape[1], 1.5 * _CELL) for row in rows]
    columns, lines = _legend_grid([name for _, name, _ in entries], width)
    legend_height = 0.24 * lines + 0.15
    height = _TITLE + sum(heights) + _GAP * len(rows) + legend_height
    figure = _figure(width, height)
    top = height - _TITLE
    for row, row_height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            left = _GAP + column * (_CELL + _GAP)
            box = (left / width, (top - row_height) / height, _CELL / width, row_height / height)
            axes = figure.add_axes(box)
            axes.set_axis_off()
            if column:
                axes.imshow(mask_picture(picture, classes), interpolation="nearest")
            else:
                axes.imshow(picture)
            if top == height - _TITLE:
                axes.set_title(titles[column], fontsize=_FONT + 1, pad=5)
        top -= row_height + _GAP
    figure.legend(
        handles=[_patch(number, name, colour) for number, name, colour in entries],
        loc="lower center",
        ncols=columns,
        frameon=False,
        fontsize=_FONT,
        handlelength=1.4,
        columnspacing=1.2,
        borderaxespad=0.3,
    )
    _save(figure, path)


def mask_picture(mask: UInt8, classes: Sequence[str]) -> UInt8:
    """Return a mask uint8 [H, W] in its classes' colours, uint8 [H, W, 3]; void in white and grey stripes."""
    picture = mask_colours(classes)[mask]
    stripe = max(2, round(max(mask.shape) / 60))
    diagonal = np.arange(mask.shape[0])[:, None] + np.arange(mask.shape[1])
    grey = diagonal // stripe % 2 == 0
    void = mask == VOID
    picture[void & grey] = _GREY
    picture[void & ~grey] = 255
    return picture


def curves(
    metrics: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Mapping[str, Any]]],
    path: Path,
    *,
    title: str = "",
) -> None:
    """Loss and learning rate over the steps, from the records of `metrics.jsonl`.

    Args:
        metrics: records with "step" and any of "loss", "learning_rate"; or several runs by name. Records
            without a value, or with one that is not finite, leave a gap.
    """
    runs = metrics if isinstance(metrics, Mapping) else {"": metrics}
    figure = _figure(7.0, 5.0)
    loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for number, (name, records) in enumerate(runs.items()):
        colour = f"C{number % 10}"
        steps, losses = _series(records, "loss")
        smooth = _running_mean(losses)
        if smooth is None:
            loss.plot(
                steps, losses, color=colour, label=name, marker="o" if len(steps) < 30 else "", markersize=3
            )
        else:
            loss.plot(steps, losses, color=colour, alpha=0.3, linewidth=0.8)
            loss.plot(steps, smooth, color=colour, label=name)
        steps, rates = _series(records, "learning_rate")
        rate.plot(steps, rates, color=colour, marker="o" if len(steps) == 1 else "")
    loss.set_ylabel("loss", fontsize=_FONT)
    rate.set_ylabel("learning rate", fontsize=_FONT)
    rate.set_xlabel("step", fontsize=_FONT)
    rate.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if any(np.any(np.asarray(line.get_ydata(), dtype=float) > 0) for line in rate.get_lines()):
        rate.set_yscale("log")
    seen = {record["step"] for records in runs.values() for record in records if "step" in record}
    if len(seen) == 1:  # else the ticks are at fractions of a step
        rate.set_xlim(min(seen) - 1, min(seen) + 1)
    elif not seen:
        loss.text(0.5, 0.5, "no records", transform=loss.transAxes, ha="center", va="center", fontsize=_FONT)
    loss.set_ylim(bottom=min(0.0, loss.get_ylim()[0]))
    if any(runs):
        loss.legend(fontsize=_FONT, frameon=False)
    for axes in (loss, rate):
        _plain(axes)
    figure.align_ylabels()
    loss.set_title(title, fontsize=_FONT + 1)
    _save(figure, path, tight=True)


def loss_map_figure(
    photo: UInt8,
    loss_map: NDArray[np.floating[Any]],
    weights: NDArray[np.floating[Any]],
    classes: Sequence[str],
    path: Path,
) -> None:
    """The loss map of each class that a rule taught, with the places it chose, beside the photo.

    Dark is a low loss, -log p of the class. A circle marks a place with weight, its area in proportion; a
    cross marks a negative weight, which rules of raw scores have. The photo shows each class's heaviest
    places, ten at most.

    Args:
        photo: uint8 [H, W, 3].
        loss_map: [C, h, w], in nats.
        weights: [C, h, w]; classes with none are not drawn.
        classes: the C names.

    Raises:
        ValueError: shapes that do not belong together.
    """
    if loss_map.shape != weights.shape or loss_map.ndim != 3 or loss_map.shape[0] != len(classes):
        raise ValueError(
            f"expected loss map and weights [{len(classes)}, h, w], got {list(loss_map.shape)} and "
            f"{list(weights.shape)}"
        )
    taught = [c for c in range(len(classes)) if np.any(weights[c] != 0)]
    high, wide = photo.shape[:2]
    panel = min(2.8, max(1.2, 2.8 * wide / high))
    lines = math.ceil((1 + len(taught)) / 4)
    columns = math.ceil((1 + len(taught)) / lines)
    figure = _figure(columns * (panel + 0.1) + 1.0, lines * (panel * high / wide + 0.35) + 0.1)
    figure.set_layout_engine("constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    extent = (0, wide, high, 0)
    colours = mask_colours(classes) / 255.0
    first, *panels = grid.flat
    first.imshow(photo, extent=extent)
    first.set_title("input", fontsize=_FONT)
    finite = loss_map[taught][np.isfinite(loss_map[taught])] if taught else np.zeros(1)
    low, top = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    image = None
    for axes, c in zip(panels, taught, strict=False):
        image = axes.imshow(
            loss_map[c],
            cmap="viridis",
            vmin=low,
            vmax=max(top, low + 1e-6),
            extent=extent,
            interpolation="nearest",
        )
        axes.set_title(classes[c], fontsize=_FONT)
        _mark(axes, weights[c], (high, wide), "white")
        # Black, the background's colour, would vanish on a dark photo: every mark has a white rim.
        _mark(first, _heaviest(weights[c], 10), (high, wide), colours[c])
    if image is not None:
        bar = figure.colorbar(image, ax=list(grid.flat), fraction=0.05, pad=0.02)
        bar.set_label("loss (nats)", fontsize=_FONT)
        bar.ax.tick_params(labelsize=_FONT - 1)
    _save(figure, path)


def score_bars(
    rows: Sequence[tuple[str, float]],
    path: Path,
    *,
    paper: Mapping[str, float] | None = None,
    title: str = "",
) -> None:
    """Mean IU of each approach as a bar with its number, the paper's beside it where there is one.

    Args:
        rows: (approach, mean IU in percent), drawn from the top; nan is written as "not measured".
        paper: the paper's mean IU for some of the approaches.
    """
    published = {name: value for name, value in (paper or {}).items() if any(name == row[0] for row in rows)}
    figure = _figure(7.0, 0.9 + 0.5 * max(1, len(rows)))
    axes = figure.subplots()
    thick = 0.38 if published else 0.65
    for place, (name, value) in enumerate(rows):
        centre = place - thick / 2 if name in published else place
        shown = 0.0 if math.isnan(value) else value
        axes.barh(centre, shown, height=thick, color="tab:blue", label="here" if place == 0 else None)
        _number(axes, shown, centre, "not measured" if math.isnan(value) else f"{value:.1f}")
        if name in published:
            below = place + thick / 2
            label = "paper" if name == next(iter(published)) else None
            axes.barh(
                below, published[name], thick, color="white", edgecolor="tab:gray", hatch="///", label=label
            )
            _number(axes, published[name], below, f"{published[name]:.1f}")
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=_FONT)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max([1.0, *(v for _, v in rows if not math.isnan(v)), *published.values()]))
    axes.set_xlabel("mean IU, %", fontsize=_FONT)
    axes.set_title(title, fontsize=_FONT + 1)
    if published:
        axes.legend(fontsize=_FONT, frameon=False, loc="best")
    _plain(axes)
    axes.grid(visible=False)
    _save(figure, path, tight=True)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path, *, tight: bool = False) -> None:
    if tight:
        figure.tight_layout()
    with atomic_path(path, sync=False) as temporary:
        # Without the version note, so that equal input gives equal bytes.
        figure.savefig(temporary, format="png", dpi=_DPI, metadata={"Software": None})


def _patch(number: int, name: str, colour: tuple[int, int, int]) -> Patch:
    if number == VOID:
        return Patch(facecolor="white", edgecolor=str(_GREY / 255), hatch="/////", label=name)
    red, green, blue = (channel / 255.0 for channel in colour)
    return Patch(facecolor=(red, green, blue), edgecolor="0.4", linewidth=0.5, label=name)


def _legend_grid(names: Sequence[str], width: float) -> tuple[int, int]:
    """Columns and lines of a legend in `width` inches, the lines about equally full."""
    # An entry takes a colour patch, a gap, and about 0.09 inch a letter; columns suit the longest name.
    widths = [0.5 + 0.09 * len(name) for name in names]
    fitting = len(names) if sum(widths) <= width else max(1, int(width / max(widths)))
    lines = math.ceil(len(names) / fitting)
    return math.ceil(len(names) / lines), lines


def _heaviest(weights: NDArray[np.floating[Any]], count: int) -> NDArray[np.floating[Any]]:
    """The `count` largest positive weights; the others are 0."""
    flat = np.where(weights > 0, weights, 0.0).reshape(-1)
    kept = np.zeros_like(flat)
    top = np.argsort(-flat, kind="stable")[:count]
    kept[top] = flat[top]
    return kept.reshape(weights.shape)


def _plain(axes: Axes) -> None:
    axes.tick_params(labelsize=_FONT - 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _number(axes: Axes, value: float, place: float, text: str) -> None:
    axes.annotate(
        text, (value, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=_FONT
    )


def _series(
    records: Sequence[Mapping[str, Any]], key: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    pairs = [(r["step"], r[key]) for r in records if r.get("step") is not None and r.get(key) is not None]
    steps = np.array([step for step, _ in pairs], dtype=np.float64)
    values = np.array([value for _, value in pairs], dtype=np.float64)
    values[~np.isfinite(values)] = np.nan
    return steps, values


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Mean over a centred window of a thirtieth of the values, gaps left out; None for short series."""
    if len(values) < 100:
        return None
    window = np.ones(2 * (len(values) // 60) + 1)
    known = np.isfinite(values)
    total = np.convolve(np.where(known, values, 0.0), window, mode="same")
    count = np.convolve(known.astype(np.float64), window, mode="same")
    return np.where(count > 0, total / np.maximum(count, 1.0), np.nan)


def _mark(axes: Axes, weights: NDArray[np.floating[Any]], size: tuple[int, int], colour: Any) -> None:
    rows, columns = np.nonzero(weights)
    values = weights[rows, columns]
    if not values.size:
        return
    across = (columns + 0.5) * size[1] / weights.shape[1]
    down = (rows + 0.5) * size[0] / weights.shape[0]
    area = 70.0 * np.abs(values) / np.abs(values).max() + 2.0
    # A rule that weighs every place would cover the picture: the more marks, the smaller.
    area *= min(1.0, 12.0 / math.sqrt(len(values)))
    plus = values > 0
    axes.scatter(across[plus], down[plus], s=area[plus] * 1.9, color="white", linewidths=0)
    axes.scatter(across[plus], down[plus], s=area[plus], color=colour, edgecolors="black", linewidths=0.6)
    axes.scatter(across[~plus], down[~plus], s=area[~plus], marker="x", color="red", linewidths=1.2)
