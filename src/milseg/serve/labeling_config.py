"""A labeling configuration of Label Studio, read for its brush; nothing of it is kept besides."""

from __future__ import annotations

from dataclasses import dataclass
from xml.parsers import expat

from milseg.errors import UserError

MAX_CHARACTERS = 2**20


@dataclass(frozen=True, kw_only=True)
class Brush:
    """What a labeling configuration says of masks.

    Attributes:
        from_name, to_name: names of the brush and of its image.
        key: the field of a task that holds the photo's address.
        labels: the brush's labels.
    """

    from_name: str
    to_name: str
    key: str
    labels: tuple[str, ...]


def read_config(text: str) -> Brush:
    """The first brush of a labeling configuration that is on an image.

    Elements are looked at as they are parsed and no tree is built, whose depth and size a sender could choose.

    Raises:
        UserError: not XML, too long, with a document type (whose entities may expand without end), or no brush on an
            image.
    """
    if len(text) > MAX_CHARACTERS:
        raise UserError(
            f"the labeling configuration has {len(text):,} characters; expected at most {MAX_CHARACTERS:,}"
        )
    elements = _Elements()
    try:
        elements.parser.Parse(text, True)
    except (expat.ExpatError, ValueError) as error:
        raise UserError(f"the labeling configuration cannot be read ({error})") from None
    for brush, labels in elements.brushes:
        name, target = brush.get("name"), brush.get("toName")
        value = elements.images.get(target or "", "")
        if name and target and len(value) > 1 and value.startswith("$"):
            return Brush(from_name=name, to_name=target, key=value[1:], labels=tuple(labels))
    raise UserError(
        'the labeling configuration has no brush on an image; expected <Image name="image" value="$image"/> and '
        '<BrushLabels name="brush" toName="image"> with the model\'s classes as labels'
    )


class _Elements:
    """Images by name, and brushes with their labels, in the order of the document."""

    def __init__(self) -> None:
        self.parser = expat.ParserCreate()
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.images: dict[str, str] = {}
        self.brushes: list[tuple[dict[str, str], list[str]]] = []
        self._inside = 0  # open brushes

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        if tag == "Image":
            self.images[attributes.get("name", "")] = attributes.get("value", "")
        elif tag == "BrushLabels":
            self.brushes.append((attributes, []))
            self._inside += 1
        elif tag == "Label" and self._inside:
            self.brushes[-1][1].append(attributes.get("value", ""))

    def _end(self, tag: str) -> None:
        self._inside -= tag == "BrushLabels"

    def _doctype(self, *_: object) -> None:
        raise ValueError("it has a document type, which may define entities; leave it out")
