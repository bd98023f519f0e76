"""Augmentations of training photos, with masks and points transformed alike: one function each.

Each has a row in `milseg.data.transform_table`.

Typed as `flip,scale(most=1.5),jitter`; they run in the order of the table, whatever the order they are typed in. Each
draws from its own stream of random numbers, keyed by the seed and the photo's position in the run, so that a step can
be made again by itself, and so that one more augmentation changes no draw of another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from milseg.data.bags import BACKGROUND, PRESENT, UNKNOWN
from milseg.data.image import UInt8, resize_mask, resize_photo
from milseg.data.sampler import generator
from milseg.data.transform_table import NONE, TRANSFORMS
from milseg.errors import UserError, unknown_name
from milseg.utils.call_syntax import check_settings, parse_call, split_calls
from milseg.utils.registry import load_object


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A training photo with all that must move with it.

    Attributes:
        photo: uint8 [H, W, 3].
        size: (height, width) at which it is trained on; the photo may still be larger.
        tags: as in `Bag`.
        mask: uint8 [H, W] in class numbers, or None.
        points: float64 [N, 2], (row, column) in the photo's pixels, or None; those that leave the photo are dropped.
    """

    photo: UInt8
    size: tuple[int, int]
    tags: tuple[int, ...]
    mask: UInt8 | None = None
    points: NDArray[np.float64] | None = None

    def resized(self, size: tuple[int, int] | None = None) -> Sample:
        """The sample at `size`, or at the size at which it is trained on."""
        size = size or self.size
        before = self.photo.shape[:2]
        factor = np.array(size) / before
        return replace(
            self,
            photo=resize_photo(self.photo, size),
            size=size,
            mask=None if self.mask is None else resize_mask(self.mask, size),
            points=None if self.points is None else (self.points + 0.5) * factor - 0.5,
        )

    def window(self, rows: slice, columns: slice) -> Sample:
        """A part of the sample. A present class that the mask no longer shows becomes UNKNOWN: the tag may be of what
        was cut away.
        """
        photo = self.photo[rows, columns]
        points, mask = self.points, None if self.mask is None else self.mask[rows, columns]
        if points is not None:
            points = points - (rows.start, columns.start)
            inside = (points >= -0.5) & (points < np.array(photo.shape[:2]) - 0.5)
            points = points[inside.all(axis=1)]
        tags = self.tags if mask is None else window_tags(self.tags, mask)
        size = (photo.shape[0], photo.shape[1])
        return replace(self, photo=photo, size=size, tags=tags, mask=mask, points=points)


def window_tags(tags: tuple[int, ...], mask: UInt8) -> tuple[int, ...]:
    """A photo's tags as tags of a window of it, whose mask is uint8 [h, w]."""
    pixels = np.bincount(mask.ravel(), minlength=len(tags))
    return tuple(
        UNKNOWN if tag == PRESENT and number != BACKGROUND and not pixels[number] else tag
        for number, tag in enumerate(tags)
    )


def scale_crop(sample: Sample, factor: float, down: float = 0.5, across: float = 0.5) -> Sample:
    """The sample `factor` times as large, and of that a window of its training size.

    Args:
        factor: above 1 the window is a part of the photo; below 1 the photo is seen whole, and smaller.
        down, across: where the window lies, 0 (top, left) to 1 (bottom, right).
    """
    height, width = sample.size
    whole = (max(1, round(height * factor)), max(1, round(width * factor)))
    rows, columns = (
        slice(start, start + side)
        for side, start in (
            (min(full, seen), round(place * max(0, seen - full)))
            for full, seen, place in zip(sample.size, whole, (down, across), strict=True)
        )
    )
    resized = sample.resized(whole)
    return resized if factor <= 1 else resized.window(rows, columns)


# name by name


def scale(sample: Sample, random: torch.Generator, *, most: float = 1.5) -> Sample:
    """At a random size, 1/most to most times its own; sizes are as likely by factors.

    Without a mask nobody knows what a window shows of the photo's tags, so the photo is then only made smaller.
    """
    size, down, across = torch.rand(3, generator=random).tolist()
    factor = most ** (2 * size - 1)
    return scale_crop(sample, factor if sample.mask is not None else min(1.0, factor), down, across)


def flip(sample: Sample, random: torch.Generator) -> Sample:
    """Mirror half of the photos left to right."""
    sample = sample.resized()
    if not bool(torch.randint(0, 2, (), generator=random)):
        return sample
    points = sample.points
    if points is not None:
        points = np.stack([points[:, 0], sample.size[1] - 1 - points[:, 1]], axis=1)
    mask = None if sample.mask is None else sample.mask[:, ::-1]
    return replace(sample, photo=sample.photo[:, ::-1], mask=mask, points=points)


def jitter(
    sample: Sample,
    random: torch.Generator,
    *,
    brightness: float = 0.2,
    contrast: float = 0.2,
    saturation: float = 0.2,
    hue: float = 0.02,
) -> Sample:
    """Other light and colours: each factor is drawn from 1 - x to 1 + x, the turn of the hue from -x to x."""
    from torchvision.transforms.v2 import functional

    drawn = (2 * torch.rand(4, generator=random) - 1).tolist()
    steps: tuple[tuple[Callable[..., torch.Tensor], float], ...] = (
        (functional.adjust_brightness, max(0.0, 1 + brightness * drawn[0])),
        (functional.adjust_contrast, max(0.0, 1 + contrast * drawn[1])),
        (functional.adjust_saturation, max(0.0, 1 + saturation * drawn[2])),
        (functional.adjust_hue, hue * drawn[3]),
    )

    def change(pixels: torch.Tensor) -> torch.Tensor:
        for function, amount in steps:
            pixels = function(pixels, amount)
        return pixels

    return _pixels_changed(sample, change)


def grey(sample: Sample, random: torch.Generator, *, probability: float = 0.1) -> Sample:
    """Take the colours away from some photos."""
    from torchvision.transforms.v2 import functional

    if float(torch.rand((), generator=random)) >= probability:
        return sample
    return _pixels_changed(sample, partial(functional.rgb_to_grayscale, num_output_channels=3))


def blur(sample: Sample, random: torch.Generator, *, probability: float = 0.1, most: float = 1.5) -> Sample:
    """Blur some photos, by a Gaussian of at most `most` pixels' deviation."""
    from torchvision.transforms.v2 import functional

    chance, size = torch.rand(2, generator=random).tolist()
    sigma = max(0.1, size * most)
    if chance >= probability:
        return sample
    kernel = 2 * round(3 * sigma) + 1
    return _pixels_changed(
        sample, partial(functional.gaussian_blur, kernel_size=[kernel, kernel], sigma=[sigma, sigma])
    )


def _pixels_changed(sample: Sample, change: Callable[[torch.Tensor], torch.Tensor]) -> Sample:
    """Pixels uint8 [3, H, W] changed where they lie."""
    sample = sample.resized()
    pixels = torch.from_numpy(np.array(sample.photo)).permute(2, 0, 1)
    return replace(sample, photo=np.asarray(change(pixels).permute(1, 2, 0).contiguous().numpy()))


class Transform(NamedTuple):
    """An augmentation with its options set."""

    name: str
    options: dict[str, Any]

    def __call__(self, sample: Sample, *, seed: int, position: int) -> Sample:
        """The sample that lies at `position` in the run of that seed, transformed."""
        row = TRANSFORMS[self.name]
        drawn = generator(seed, position, stream=row.stream)
        transformed: Sample = load_object(row.where)(sample, drawn, **self.options)
        return transformed


def find_transforms(text: str) -> tuple[Transform, ...]:
    """The augmentations of a list such as `flip,scale(most=1.5)`, in the order in which they run; `none` for none.

    >>> [transform.name for transform in find_transforms("flip,scale(most=2)")]
    ['scale', 'flip']

    Raises:
        UserError: an unknown name or option, a value out of range, or a name given twice.
    """
    chosen: dict[str, Transform] = {}
    for part in [] if text.strip() == NONE else split_calls(text):
        name, settings = parse_call(part)
        if name not in TRANSFORMS:
            raise unknown_name("augmentation", name, (*TRANSFORMS, NONE))
        if name in chosen:
            raise UserError(f"augmentation {name} is given twice; expected each once, in {text!r}")
        row = TRANSFORMS[name]
        options = check_settings("augmentation", name, settings, load_object(row.where))
        for option, value in options.items():
            low, high = row.limits[option]
            if not low <= value <= high:
                raise UserError(f"augmentation {name}: {option} is {value}; expected {low:g} to {high:g}")
        chosen[name] = Transform(name, options)
    return tuple(chosen[name] for name in TRANSFORMS if name in chosen)


def left_out(text: str, name: str) -> str:
    """A list of augmentations without one of them.

    >>> left_out("flip,scale(most=1.5)", "flip"), left_out("flip", "flip")
    ('scale(most=1.5)', 'none')
    """
    return ",".join(part for part in split_calls(text) if parse_call(part)[0] != name) or NONE


def added(text: str, more: str) -> str:
    """A list of augmentations with one more; one of that name that is there already stays as it is.

    >>> added("flip", "scale(most=2)"), added("none", "grey"), added("grey", "grey(probability=1)")
    ('flip,scale(most=2)', 'grey', 'grey')
    """
    names = [parse_call(part)[0] for part in split_calls(text)]
    if parse_call(more)[0] in names:
        return text
    return f"{left_out(text, NONE)},{more}".removeprefix(f"{NONE},")


def apply(transforms: Sequence[Transform], sample: Sample, *, seed: int, position: int) -> Sample:
    """The sample after all transforms, at the size at which it is trained on."""
    for transform in transforms:
        sample = transform(sample, seed=seed, position=position)
    return sample.resized()
