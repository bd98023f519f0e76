"""Label Studio: tasks with brush predictions, and the labeling configuration they belong to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from milseg.annotations.coco import write_list
from milseg.annotations.rle import label_studio_rle
from milseg.annotations.writer import Prediction, Writer
from milseg.data.image import UInt8
from milseg.data.overlay import mask_colours
from milseg.errors import UserError
from milseg.utils.files import atomic_path, write_text

# Files below the folder that Label Studio serves (its LOCAL_FILES_DOCUMENT_ROOT).
LOCAL_FILES = "/data/local-files/?d="


def image_prefix(given: str) -> str:
    """What comes before a photo's path in a task, from a folder below the document root or from an address.

    >>> image_prefix("pets/new photos"), image_prefix("https://example.org/p/")
    ('/data/local-files/?d=pets/new%20photos/', 'https://example.org/p/')

    Raises:
        UserError: a folder that leads upwards, or control characters.
    """
    text = given.strip().replace("\\", "/")
    if not text.isprintable():
        raise UserError(
            f"--labelstudio-prefix {given!r}: control characters; expected a folder or an address"
        )
    if "://" in text or text.startswith("/data/"):
        return text if text.endswith(("/", "=")) else f"{text}/"
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise UserError(
            f"--labelstudio-prefix {given!r}: leads out of the document root; expected a folder below it, such as pets"
        )
    return LOCAL_FILES + "".join(f"{quote(part)}/" for part in parts)


def brush_regions(
    mask: UInt8,
    labels: Mapping[int, str],
    score: Callable[[str], float],
    *,
    from_name: str,
    to_name: str,
) -> list[dict[str, Any]]:
    """Each label's pixels as one brush region of a prediction.

    Args:
        mask: uint8 [H, W], class numbers.
        labels: the numbers to write, with their labels; each must be in the mask.
        score: how sure a label is.
        from_name, to_name: names of the brush and of the image in the labeling configuration.
    """
    height, width = mask.shape
    return [
        {
            "id": f"class-{number}",
            "type": "brushlabels",
            "from_name": from_name,
            "to_name": to_name,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": score(name),
            "value": {"format": "rle", "rle": label_studio_rle(mask == number), "brushlabels": [name]},
        }
        for number, name in labels.items()
    ]


class LabelStudioWriter(Writer):
    """`labelstudio.json`, tasks to import, and `labelstudio_config.xml`, the project's labeling interface.

    Each class a photo shows is one brush region. Label Studio finds the photos by address: `image_prefix`
    followed by the photo's path below the input folder.

    Source: Label Studio's "Import pre-annotated data", brush segmentation.
    """

    format = "labelstudio"
    run_files = ("labelstudio.json", "labelstudio_config.xml")

    def __init__(
        self,
        out: Path,
        classes: Sequence[str],
        *,
        resume: bool = False,
        image_prefix: str = LOCAL_FILES,
        from_name: str = "brush",
        to_name: str = "image",
        model_version: str = "milseg",
    ) -> None:
        """
        Args:
            image_prefix: what comes before each photo's path: an address, or "/data/local-files/?d=FOLDER/".
            from_name, to_name: names of the brush and of the image in the labeling configuration.
            model_version: shown beside the predictions.
        """
        self.image_prefix, self.model_version = image_prefix, model_version
        self.from_name, self.to_name = from_name, to_name
        super().__init__(
            out,
            classes,
            resume=resume,
            image_prefix=image_prefix,
            from_name=from_name,
            to_name=to_name,
            model_version=model_version,
        )

    def _write(self, prediction: Prediction) -> dict[str, Any]:
        result = brush_regions(
            prediction.mask,
            {number: self.classes[number] for number in self.present(prediction.mask)},
            prediction.score,
            from_name=self.from_name,
            to_name=self.to_name,
        )
        return {
            "data": {"image": self.image_prefix + quote(prediction.photo_file)},
            "predictions": [
                {
                    "model_version": self.model_version,
                    "score": round(float(prediction.confidence), 6),
                    "result": result,
                }
            ],
        }

    def _tasks(self) -> Iterator[Any]:
        for entry in self._ledger:
            yield entry["data"]

    def _finish(self) -> list[Path]:
        path, config = self.out / "labelstudio.json", self.out / "labelstudio_config.xml"
        write_text(config, self.config())
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
            write_list(file, self._tasks())
            file.write("\n")
        return [path, config]

    def config(self) -> str:
        """The labeling configuration, XML: a brush for each class, in the colours of the overlays."""
        colours = mask_colours(self.classes)
        lines = [
            "<View>",
            f'  <Image name={quoteattr(self.to_name)} value="$image" zoom="true"/>',
            f"  <BrushLabels name={quoteattr(self.from_name)} toName={quoteattr(self.to_name)}>",
        ]
        for number, name in enumerate(self.labels, start=self.first_label):
            red, green, blue = colours[number].tolist()
            lines.append(f'    <Label value={quoteattr(name)} background="#{red:02x}{green:02x}{blue:02x}"/>')
        return "\n".join([*lines, "  </BrushLabels>", "</View>"]) + "\n"
