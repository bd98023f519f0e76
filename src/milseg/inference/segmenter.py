"""A trained model as an object: `load` a model folder, `segment` photos."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from milseg.config import InferenceConfig
from milseg.data.image import (
    DECODING_ERRORS,
    MAX_PIXELS,
    PackedPhoto,
    UInt8,
    as_rgb,
    fit_size,
    open_photo,
    resize_photo,
)
from milseg.data.masks import class_counts, overlay
from milseg.errors import UserError, unknown_name
from milseg.inference.hub import local_folder
from milseg.inference.model_folder import ModelSpec, load_model
from milseg.inference.onnx_network import OnnxNetwork, is_onnx_file, load_onnx_network
from milseg.inference.prior import apply_prior
from milseg.inference.score_map import masks_from_scores, upsample
from milseg.inference.tiling import Network
from milseg.inference.tta import ScoreMap, affinity, look, walk
from milseg.models.fcn import FCN
from milseg.models.fuse import fused
from milseg.refine import find_refiner
from milseg.utils.devices import pick_device

# Numbers of a score map that are worked on together, where it is large.
BLOCK = 2**24


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

    def overlay(self, *, alpha: float = 0.5) -> UInt8:
        """The photo under its mask's colours, uint8 [H, W, 3]."""
        return overlay(self.photo, self.mask, self.classes, alpha=alpha)

    def probabilities(self) -> NDArray[np.float32]:
        """The softmax of the scores interpolated to the photo's size, float32 [C, H, W]."""
        height, width = self.photo.shape[:2]
        fine = upsample(
            torch.from_numpy(self.scores).nan_to_num(neginf=-1e4),
            (height, width),
            stride=self.stride,
            offset=self.offset,
            input_size=self.input_size,
        )
        return np.asarray(fine.softmax(dim=0).numpy(), dtype=np.float32)


class Segmenter:
    """A model ready to segment photos.

    Args:
        model, spec: as `milseg.inference.model_folder.load_model` gives them; the model on the device to compute on.
        inference: how maps become masks, in place of the spec's own.
        class_bias: for some classes a number added to their scores before the top class is taken: above 0 for more of
            the class, below 0 for less; 1 makes it e times as likely at every place.
        network: what computes the scores in place of `model`, such as the same network made quicker: its score map
            is all that is asked of it.

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
        self.network: Network = model if network is None else network
        self.classes = spec.classes
        self.inference = inference or spec.inference
        if self.inference.prior and spec.prior is None:
            raise UserError(
                f"prior {self.inference.prior:g}: this model was saved without a calibrated prior; train it with a "
                "part of the photos held out, or use prior 0"
            )
        # The network whose inner maps the walk follows.
        self._inside = next((n for n in (self.network, self.model) if isinstance(n, FCN)), None)
        if self.inference.random_walk and self._inside is None:
            raise UserError(
                f"random walk {self.inference.random_walk}: an exported model has no inner maps for its affinity; "
                "use --random-walk 0"
            )
        self._refine = None if self.inference.refine == "none" else find_refiner(self.inference.refine)
        self._shift = torch.zeros(len(spec.classes))
        for name, amount in (class_bias or {}).items():
            if name not in spec.classes:
                raise unknown_name("class", name, spec.classes)
            if not np.isfinite(amount):
                raise UserError(f"adjustment of {name}: {amount}; expected a finite number")
            self._shift[spec.classes.index(name)] = amount

    def segment(
        self,
        photo: Path | str | PackedPhoto | UInt8 | Image.Image,
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
        pixels = self._pixels(photo, max_pixels)
        found = self.scores(pixels, allowed=None if tags is None else self._allowed(tags))
        scores = found.scores
        mask = self.mask_of(pixels, found)
        best, confidence = certainty(scores[0])
        counts = class_counts(mask)
        return Segmentation(
            mask=mask,
            classes=self.classes,
            tags=self._shown(counts, best),
            areas=self._areas(counts),
            confidence=confidence,
            scores=np.asarray(scores[0].numpy(), dtype=np.float32),
            stride=found.stride,
            offset=found.offset,
            input_size=found.input_size,
            tags_given=tags is not None,
            photo=pixels,
        )

    def scores(self, photo: UInt8, *, allowed: torch.Tensor | None = None) -> ScoreMap:
        """The score map of a photo uint8 [H, W, 3], with prior and adjustment; on the CPU.

        Args:
            allowed: bool [C]; the other classes are ruled out (-inf). With known tags the prior has nothing to say.
        """
        config = self.inference
        found = look(
            self.network, photo, longest_side=self.spec.longest_side, scales=config.scales, flip=config.flip
        )
        found = found._replace(scores=found.scores.float().cpu())
        if allowed is None:
            found = self.with_prior(found)
        else:
            ruled_out = ~allowed[None, :, None, None]
            found = found._replace(scores=found.scores.masked_fill(ruled_out, -torch.inf))
        found = self.walked(photo, found)
        if self._shift.any():
            found = found._replace(scores=found.scores + self._shift[None, :, None, None])
        return found

    def walked(self, photo: UInt8, found: ScoreMap) -> ScoreMap:
        """The map after as many steps among places that look alike as `inference` says."""
        if not self.inference.random_walk:
            return found
        assert self._inside is not None
        return walk(found, affinity(self._inside, photo, found), steps=self.inference.random_walk)

    def with_prior(self, found: ScoreMap) -> ScoreMap:
        """The map weighed by the image-level prior, as strongly as `inference` says."""
        if not self.inference.prior or self.spec.prior is None:
            return found
        return found._replace(scores=apply_prior(found.scores, self.spec.prior, self.inference.prior))

    def interpolated(self, found: ScoreMap, size: tuple[int, int]) -> torch.Tensor:
        """The softmax of the map interpolated to `size`, float32 [C, h, w], before any refiner."""
        # A ruled-out class must stay finite through the interpolation: 0 * inf is not a number.
        return upsample(
            found.scores.clamp_min(-1e30),
            size,
            stride=found.stride,
            offset=found.offset,
            input_size=found.input_size,
        )[0].softmax(dim=0)

    def refined(self, photo: UInt8, probs: torch.Tensor) -> torch.Tensor:
        """Probabilities [C, h, w] of a photo of any size after the refiner; the same where there is none."""
        if self._refine is None:
            return probs
        return self._refine(resize_photo(photo, (probs.shape[1], probs.shape[2])), probs)

    def mask_of(self, photo: UInt8, found: ScoreMap) -> UInt8:
        """The mask uint8 [H, W] of a photo uint8 [H, W, 3] from its map: interpolated, refined, top class."""
        size = (photo.shape[0], photo.shape[1])
        if self._refine is None:
            top = masks_from_scores(
                found.scores,
                size,
                stride=found.stride,
                offset=found.offset,
                input_size=found.input_size,
            )[0]
        else:
            seen = fit_size(*size, self.inference.refine_side)
            probs = self.refined(photo, self.interpolated(found, seen))[None]
            top = masks_from_scores(probs, size, stride=1, offset=0.0, input_size=seen)[0]
        return np.asarray(top.numpy(), dtype=np.uint8)

    def _pixels(self, photo: Path | str | PackedPhoto | UInt8 | Image.Image, max_pixels: int) -> UInt8:
        if isinstance(photo, str | Path):
            return open_photo(Path(photo), max_pixels=max_pixels)
        if isinstance(photo, PackedPhoto):
            return open_photo(photo, max_pixels=max_pixels)
        if isinstance(photo, Image.Image):
            try:
                return as_rgb(photo)
            except DECODING_ERRORS as error:
                raise UserError(f"a Pillow image that cannot be decoded ({error})") from None
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or 0 in photo.shape:
            raise UserError(
                f"a photo as an array of {photo.dtype} {list(photo.shape)}; expected uint8 [H, W, 3], RGB"
            )
        return photo

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


def certainty(scores: torch.Tensor) -> tuple[list[float], float]:
    """The highest probability of each class at any place of [C, h, w], and the mean of the top class's."""
    step = max(1, BLOCK // (scores.shape[0] * scores.shape[2]))
    best, total = torch.zeros(len(scores)), 0.0
    for start in range(0, scores.shape[1], step):
        rows = scores[:, start : start + step]
        p = rows.softmax(dim=0)
        best = torch.maximum(best, p.flatten(1).amax(dim=1))
        total += float(p.amax(dim=0).mean()) * rows.shape[1]
    return best.tolist(), total / scores.shape[1]


def load(
    folder: Path | str,
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
    if is_onnx_file(folder):
        if device not in ("auto", "cpu"):
            raise UserError(f"{folder}: an exported model runs on the CPU; leave --device {device} out")
        network, spec = load_onnx_network(Path(folder))
        return Segmenter(network, spec, inference=inference, class_bias=class_bias)
    model, spec = load_model(local_folder(folder))
    model.to(pick_device(device))
    return Segmenter(model, spec, inference=inference, class_bias=class_bias, network=fused(model))
