"""A trained model as an object: `load` a model folder, `segment` photos."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from milseg.config import InferenceConfig
from milseg.data.image import (
    MAX_PIXELS,
    PackedPhoto,
    UInt8,
    as_rgb,
    guarded,
    read_photo,
)
from milseg.data.masks import class_counts
from milseg.data.overlay import overlay
from milseg.data.raster import to_rgb
from milseg.errors import UserError, unknown_name
from milseg.inference.hub import local_folder
from milseg.inference.model_folder import ModelSpec, load_model
from milseg.inference.onnx_network import OnnxNetwork, is_onnx_file, load_onnx_network
from milseg.inference.pipeline import Job, coarse_map, refine
from milseg.inference.score_map import ScoreMap
from milseg.inference.tiling import Network
from milseg.models.fcn import FCN
from milseg.models.fuse import fused
from milseg.refine import find_refiner
from milseg.utils.devices import pick_device
from milseg.utils.files import PathLike, as_path

Key = TypeVar("Key")
# What can be segmented: a file, a photo in a shard, uint8 [H, W, 3], or a Pillow image.
Photo: TypeAlias = Path | str | PackedPhoto | UInt8 | Image.Image


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation:
    """What a model says of one photo.

    Attributes:
        mask: uint8 [H, W] at the photo's own size and orientation; numbers of `classes`.
        classes: class names, background first where there is one.
        tags: (class, confidence) of the classes that the mask shows, surest first; the confidence is the highest
            probability of the class at any place.
        areas: share of the photo that each shown class covers, 0 to 1, background included.
        confidence: mean probability of the top class over the places, 0 to 1.
        scores: float32 [C, h, w], the coarse map after adjustment; -inf for classes that known tags rule out.
        stride, offset, input_size: where the places lie (see `milseg.inference.tta.ScoreMap`).
        tags_given: whether known tags limited the classes.
        photo: uint8 [H, W, 3].
        notes: what of the photo's file was left out, such as further pages.
    """

    mask: UInt8
    classes: tuple[str, ...]
    tags: tuple[tuple[str, float], ...]
    areas: dict[str, float]
    confidence: float
    scores: NDArray[np.float32]
    stride: float
    offset: float
    input_size: tuple[int, int]
    tags_given: bool
    photo: UInt8
    notes: tuple[str, ...] = ()

    def overlay(self, *, alpha: float = 0.5) -> UInt8:
        """Return the photo tinted with the classes' colours, with their names on it, uint8 [H, W, 3]."""
        return overlay(self.photo, self.mask, self.classes, alpha=alpha)

    def probabilities(self) -> NDArray[np.float32]:
        """The softmax of the scores interpolated to the photo's size, float32 [C, H, W]."""
        score_map = ScoreMap(
            scores=torch.from_numpy(self.scores),
            stride=self.stride,
            offset=self.offset,
            input_size=self.input_size,
        )
        fine = score_map.probabilities_at((self.photo.shape[0], self.photo.shape[1]))
        return np.asarray(fine.numpy(), dtype=np.float32)


class Segmenter:
    """A model ready to segment photos.

    Args:
        model, spec: as `milseg.inference.model_folder.load_model` gives them; the model on the device to compute on.
        inference: how maps become masks, in place of the spec's own.
        class_bias: for some classes a number added to their scores before the top class is taken: above 0 for more of
            the class, below 0 for less; 1 makes it e times as likely at every place.
        network: computes the scores in place of `model`; None means the model itself, its layers fused.

    Example:
        >>> from milseg.models.backbones import build_fcn
        >>> spec = ModelSpec(backbone="tiny", classes=("background", "cat"))
        >>> found = Segmenter(build_fcn("tiny", 2).eval(), spec).segment(np.zeros((20, 30, 3), np.uint8))
        >>> found.mask.shape, sorted(found.areas) in ([["background"], ["cat"], ["background", "cat"]])
        ((20, 30), True)
    """

    def __init__(
        self,
        model: FCN | OnnxNetwork,
        spec: ModelSpec,
        *,
        inference: InferenceConfig | None = None,
        class_bias: Mapping[str, float] | None = None,
        network: Network | None = None,
    ) -> None:
        self.model, self.spec = model.eval(), spec
        if network is None:
            network = fused(model) if isinstance(model, FCN) else model
        self.network: Network = network
        self.classes = spec.classes
        self.inference = inference or spec.inference
        if self.inference.prior and spec.prior is None:
            raise UserError(
                f"prior {self.inference.prior:g}: this model was saved without a calibrated prior; train it with a "
                "part of the photos held out, or use prior 0"
            )
        self._features = next((n for n in (self.network, self.model) if isinstance(n, FCN)), None)
        if self.inference.random_walk and self._features is None:
            raise UserError(
                f"random walk {self.inference.random_walk}: an exported model has no inner maps for its affinity; "
                "use --random-walk 0"
            )
        if self.inference.refine != "none":
            find_refiner(self.inference.refine)  # a wrong name or option is refused before any photo
        self._class_bias = torch.zeros(len(spec.classes))
        for name, amount in (class_bias or {}).items():
            if name not in spec.classes:
                raise unknown_name("class", name, spec.classes)
            if not np.isfinite(amount):
                raise UserError(f"adjustment of {name}: {amount}; expected a finite number")
            self._class_bias[spec.classes.index(name)] = amount

    def segment(
        self,
        photo: Photo,
        *,
        tags: Iterable[str] | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> Segmentation:
        """Segment one photo.

        Args:
            photo: a file, a photo in a shard, uint8 [H, W, 3], or a Pillow image; a file or image is turned upright.
            tags: the classes known to be in the photo; the others, but for the background, are ruled out. Never
                filled in by milseg itself.
            max_pixels: a file with more is refused before decoding.

        Raises:
            UserError: a photo that cannot be read, or an unknown tag.
        """
        pixels, notes = self._read(photo, max_pixels)
        score_map = self.score_map(pixels, allowed=None if tags is None else self._allowed(tags))
        mask = self.refined(pixels, score_map).argmax_mask((pixels.shape[0], pixels.shape[1]))
        best, confidence = score_map.tag_confidences()
        counts = class_counts(mask)
        return Segmentation(
            mask=mask,
            classes=self.classes,
            tags=self._shown(counts, best),
            areas=self._areas(counts),
            confidence=confidence,
            scores=np.asarray(score_map.scores.numpy(), dtype=np.float32),
            stride=score_map.stride,
            offset=score_map.offset,
            input_size=score_map.input_size,
            tags_given=tags is not None,
            photo=pixels,
            notes=notes,
        )

    def score_map(
        self, photo: UInt8, *, allowed: torch.Tensor | None = None, inference: InferenceConfig | None = None
    ) -> ScoreMap:
        """Return the score map of a photo uint8 [H, W, 3] before the refiner, on the CPU.

        Args:
            allowed: bool [C]; the other classes are ruled out (-inf), and the prior is not applied.
            inference: settings in place of the segmenter's.
        """
        return coarse_map(self._job(photo, allowed), inference or self.inference)

    def refined(self, photo: UInt8, score_map: ScoreMap) -> ScoreMap:
        """Return the map after the refiner, with probabilities as its scores; the same map if no refiner is set."""
        return refine(self._job(photo), self.inference, score_map)

    def masks(self, photo: UInt8, settings: Mapping[Key, InferenceConfig]) -> dict[Key, UInt8]:
        """Return a photo's mask uint8 [H, W] for each of some settings; stages that they share are computed once."""
        job = replace(self._job(photo), maps={})
        size = (photo.shape[0], photo.shape[1])
        return {
            name: refine(job, inference, coarse_map(job, inference)).argmax_mask(size)
            for name, inference in settings.items()
        }

    def _job(self, photo: UInt8, allowed: torch.Tensor | None = None) -> Job:
        return Job(
            photo=photo,
            network=self.network,
            features=self._features,
            longest_side=self.spec.longest_side,
            prior=self.spec.prior,
            class_bias=self._class_bias,
            allowed=allowed,
        )

    def pixels(self, photo: Photo, *, max_pixels: int = MAX_PIXELS) -> UInt8:
        """Return the photo decoded and upright, uint8 [H, W, 3]; raises as `segment`."""
        return self._read(photo, max_pixels)[0]

    def _read(self, photo: Photo, max_pixels: int) -> tuple[UInt8, tuple[str, ...]]:
        """Return the photo in RGB of 8 bits, and what of its file is left out."""
        if isinstance(photo, str):
            photo = Path(photo)
        if isinstance(photo, Path | PackedPhoto):
            with guarded(photo, "photo"):
                raster = read_photo(photo, max_pixels=max_pixels)
                pixels = to_rgb(raster, self.spec.value_ranges)
            return pixels, tuple(note for note in raster.notes if "of which" in note)
        if isinstance(photo, Image.Image):
            try:
                return as_rgb(photo, self.spec.value_ranges), ()
            except Exception as error:  # decoders raise what they like
                raise UserError(f"a Pillow image that cannot be decoded ({error})") from None
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or 0 in photo.shape:
            raise UserError(
                f"a photo as an array of {photo.dtype} {list(photo.shape)}; expected uint8 [H, W, 3], RGB"
            )
        return photo, ()

    def _allowed(self, tags: Iterable[str]) -> torch.Tensor:
        known = set(tags)
        for name in sorted(known - set(self.classes)):
            raise unknown_name("tag", name, self.classes)
        allowed = [name in known or name == "background" for name in self.classes]
        if not any(allowed):
            raise UserError("no tag is known, and the model has no background; expected at least one tag")
        return torch.tensor(allowed)

    def _areas(self, counts: NDArray[np.int64]) -> dict[str, float]:
        return {name: float(counts[i] / counts.sum()) for i, name in enumerate(self.classes) if counts[i]}

    def _shown(self, counts: NDArray[np.int64], best: Sequence[float]) -> tuple[tuple[str, float], ...]:
        shown = [
            (name, float(best[i]))
            for i, name in enumerate(self.classes)
            if counts[i] and name != "background"
        ]
        return tuple(sorted(shown, key=lambda tag: -tag[1]))


def load(
    folder: PathLike,
    *,
    device: str = "auto",
    inference: InferenceConfig | None = None,
    class_bias: Mapping[str, float] | None = None,
) -> Segmenter:
    """Load a model folder, `hf://OWNER/NAME` from the Hugging Face hub, or an exported .onnx file, ready to segment.

    >>> model = load("runs/demo/models/mil-fcn")  # doctest: +SKIP
    >>> model.segment("photo.jpg").tags  # doctest: +SKIP
    (('3', 0.97),)

    Raises:
        UserError: no model folder, a damaged file, or a device that is not there.
    """
    folder = folder if isinstance(folder, str) else as_path(folder)  # hf:// is no path
    if is_onnx_file(folder):
        if device not in ("auto", "cpu"):
            raise UserError(f"{folder}: an exported model runs on the CPU; leave --device {device} out")
        network, spec = load_onnx_network(Path(folder))
        return Segmenter(network, spec, inference=inference, class_bias=class_bias)
    model, spec = load_model(local_folder(folder))
    model.to(pick_device(device))
    return Segmenter(model, spec, inference=inference, class_bias=class_bias)


def segment(
    model: FCN,
    photo: Photo,
    *,
    longest_side: int | None = None,
    inference: InferenceConfig | None = None,
    reading: str = "scores",
) -> UInt8:
    """Return the mask of one photo, uint8 [H, W] at the photo's own size, as a `Segmenter` of the model makes it.

    For many photos build one `Segmenter`: it prepares the network once.

    Args:
        photo: as in `Segmenter.segment`.
        longest_side: the network sees larger photos made this small, pixels; None keeps their size.
        inference: how the score map becomes a mask; None is the paper's way, the network's own map interpolated.
        reading: "scores" or "labels"; see `milseg.inference.score_map`.

    Raises:
        UserError: a photo that cannot be read, or an unknown reading.
    """
    segmenter = Segmenter(model, unnamed_spec(model, longest_side), inference=inference or InferenceConfig())
    pixels = segmenter.pixels(photo)
    refined = segmenter.refined(pixels, segmenter.score_map(pixels))
    return refined.argmax_mask((pixels.shape[0], pixels.shape[1]), reading=reading)


def unnamed_spec(model: FCN, longest_side: int | None = None) -> ModelSpec:
    """Return a spec for a network without a model folder; its classes are called by their numbers."""
    classes = tuple(str(number) for number in range(model.score_layer.out_channels))
    return ModelSpec(backbone="", classes=classes, longest_side=longest_side)
