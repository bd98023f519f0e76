"""What is wrong with a set of masks, from its survey: a stop with the way out, or a sentence for the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from milseg.data.bags import VOID, mask_values_for, value_words
from milseg.data.mask_survey import MaskSurvey
from milseg.data.masks import palette
from milseg.data.sources.voc import VOC_CLASSES
from milseg.errors import UserError

# Changes from pixel to pixel that go by a value in between: in smoothed edges most do; in sharp ones only lines as
# thin as a pixel, whose class happens to lie between its neighbours'.
SMOOTH = 0.2
# So many values without a name are no classes that were forgotten.
MANY = 8
# Shares of void: told from the first on, and with more than the second there is nothing to score.
MUCH_VOID, ONLY_VOID = 0.3, 0.99
SHOWN = 6


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a set of masks is read.

    Attributes:
        where: the folder or the set, for messages.
        names: what the values mean.
        classes: what is scored; pixels of other names are void.
        given: the user said what each value means: what is merely odd is told, and does not stop.
        named: the user named the values, one by one or in order.
        labels, values: the options that name the values.
    """

    where: str | Path
    names: Mapping[int, str]
    classes: Sequence[str]
    given: bool = False
    named: bool = False
    labels: str = "--truth-labels"
    values: str = "--truth-values"

    @property
    def things(self) -> list[str]:
        return [name for name in self.classes if name != "background"]

    def example(self, values: Sequence[int]) -> str:
        """The option that would name these values, in order, by the classes in order."""
        return f"{self.values} " + ",".join(
            f"{v}={name}" for v, name in zip(values, self.classes, strict=False)
        )


def check_numbers(found: MaskSurvey, reading: Reading) -> list[str]:
    """Whether the numbers of the masks can be what they are read as; sentences on what is odd but may be so.

    Raises:
        UserError: values without a name, smoothed edges, 0 and 255 alone, or palettes that say otherwise.
    """
    _refuse_binary(found, reading)
    _refuse_unnamed(found, reading)
    odd = [*_smooth_edges(found, reading), *_palettes(found, reading)]
    if odd and not reading.given:
        raise UserError(
            f"{reading.where}: {odd[0]}. If the numbers are right, say what each means: {reading.values}"
        )
    if found.one_bit and len(reading.names) > 2:
        odd.append(
            f"{found.one_bit:,} of {found.masks:,} masks have one bit a pixel: their 1 is read as "
            f"{reading.names.get(1, 'void')}, and no other of the {len(reading.names)} classes can be in them"
        )
    return [f"{text[0].upper()}{text[1:]}." for text in odd]


def check_truth(found: MaskSurvey, reading: Reading) -> list[str]:
    """As `check_numbers`, and whether a score on these masks means anything.

    Raises:
        UserError: nothing to score, or one answer for every pixel would score 100.
    """
    notes = check_numbers(found, reading)
    classes = list(reading.classes)
    table = mask_values_for(classes, reading.names)
    counts = {name: int(found.pixels[table == number].sum()) for number, name in enumerate(classes)}
    shown = [name for name, count in counts.items() if count]
    total = int(found.pixels.sum())
    void = 1 - sum(counts.values()) / total if total else 1.0
    one_bad = f"{reading.where}: {found.masks:,} true masks"
    way_out = f"If these masks are right, say what each value means: {reading.example([0, 1])}"
    if not shown or (void > ONLY_VOID and not reading.given):
        raise UserError(
            f"{one_bad} of which {100 * void:.1f} % is void{_unknown_words(found, reading)}: nothing to score. "
            f"{way_out}"
        )
    if len(shown) == 1 and not reading.given:
        raise UserError(
            f"{one_bad} show {shown[0]} alone{', and void' * (void > 0)}: calling every pixel {shown[0]} would score "
            f"100. {way_out}"
        )
    if void > MUCH_VOID and not counts.get("background", 1) and not reading.given:
        raise UserError(
            f"{one_bad} show no background, and {100 * void:.1f} % of their pixels are void: what is predicted there "
            f"is never wrong. If the background is 255, say so: {reading.example([VOID, 1])}"
        )
    if len(shown) == 1:
        notes.append(f"The true masks show {shown[0]} alone: calling every pixel {shown[0]} would score 100.")
    if void > MUCH_VOID:
        notes.append(
            f"{100 * void:.1f} % of the true pixels are void{_unknown_words(found, reading)}: the score speaks of the "
            "rest alone."
        )
    return notes


def _unknown_words(found: MaskSurvey, reading: Reading) -> str:
    unknown = [
        name
        for value, name in reading.names.items()
        if found.pixels[value] and name not in reading.classes and value != VOID
    ]
    return f" (with {', '.join(unknown[:SHOWN])}, which the classes lack)" if unknown else ""


def _refuse_binary(found: MaskSurvey, reading: Reading) -> None:
    """Masks of 0 and 255 alone: what was meant as a thing would be void, which costs nothing."""
    if VOID in reading.names or VOID not in found.values or not set(found.values) <= {0, VOID}:
        return
    if found.values == [VOID]:
        raise UserError(
            f"{reading.where}: every pixel of the {found.masks:,} masks is 255, which is void; expected class numbers. "
            f"If 255 is a class, say so: {reading.values} 255={reading.classes[-1]}"
        )
    way_out = f"If 255 is a class, say so: {reading.example([0, VOID])}"
    if len(reading.things) > 1:
        way_out = (
            f"Two values cannot tell {len(reading.things)} classes apart: name the one that 255 stands for, such as "
            f"{reading.example([0, VOID])}"
        )
    raise UserError(
        f"{reading.where}: the {found.masks:,} masks hold 0 and 255 alone; expected {value_words(reading.names)}. Read "
        f"so, {reading.names.get(0, 'class 0')} and void are all there is, and no class can be right or wrong. "
        f"{way_out}"
    )


def _refuse_unnamed(found: MaskSurvey, reading: Reading) -> None:
    unnamed = [value for value in found.values if value != VOID and value not in reading.names]
    if not unnamed:
        return
    example = found.example[unnamed[0]]
    worst = int(found.showing[unnamed].max())
    shown = ", ".join(map(str, unnamed[:SHOWN])) + ", ..." * (len(unnamed) > SHOWN)
    if len(unnamed) >= MANY:
        raise UserError(
            f"{example}: holds the value {unnamed[0]}, and the {found.masks:,} masks hold {len(unnamed)} values that "
            f"are no class ({shown}); expected {value_words(reading.names)}. Edges that were smoothed when masks were "
            "made smaller, JPEG, or colours as grey do that: export the masks again as PNG, resized by nearest "
            "neighbour"
        )
    way_out = f"Pass the class names that belong to these masks ({reading.labels}, or {reading.values})"
    spread = [value for value in found.values if value != VOID or found.values[-1] == VOID]
    if len(spread) == len(reading.classes) and spread[-1] >= 2 * len(spread):
        way_out = f"If the values are the classes in their order, say so: {reading.example(spread)}"
    raise UserError(
        f"{example}: holds the value {unnamed[0]}, but only {len(reading.names)} classes are named; expected "
        f"{value_words(reading.names)}. {len(unnamed)} values have no name ({shown}), in {worst:,} of {found.masks:,} "
        f"masks. {way_out}"
    )


def _smooth_edges(found: MaskSurvey, reading: Reading) -> list[str]:
    if found.between < max(10, SMOOTH * found.changes):
        return []
    share = 100 * found.between / found.changes
    return [
        f"{share:.0f} % of the steps from class to class in the masks go by a class in between: their edges were "
        "smoothed, as in resizing, and are full of classes that are not there; export the masks again, resized by "
        "nearest neighbour"
    ]


def _palettes(found: MaskSurvey, reading: Reading) -> list[str]:
    """What the palettes' colours say of the numbers: one colour a number, and VOC's colours in VOC's order."""
    looks = {
        value: colours for value, colours in found.colours.items() if value != VOID or VOID in reading.names
    }
    for value, colours in looks.items():
        if len(colours) > 1:
            (one, first), (other, second) = list(colours.items())[:2]
            return [
                f"the number {value} is drawn {one} in {first} and {other} in {second}: each mask has a palette of its "
                "own, so its numbers mean nothing to the others; export all masks with one palette"
            ]
    voc = {tuple(colour): number for number, colour in enumerate(palette()[: len(VOC_CLASSES)].tolist())}
    meant = {
        value: voc[next(iter(colours))] for value, colours in looks.items() if next(iter(colours)) in voc
    }
    wrong = {
        value: number
        for value, number in meant.items()
        if value != number
        and reading.names.get(value) != VOC_CLASSES[number]
        and reading.names.get(number, reading.names.get(value)) != reading.names.get(value)
    }
    if len(meant) < len(looks) or not wrong:
        return []
    value, number = min(wrong.items())
    return [
        f"the palette has VOC's colours in another order: by its number {value} is {reading.names.get(value)}, by its "
        f"colour, VOC's {number}, it is {reading.names[number]}; export the masks with numbers in the classes' order"
    ]
