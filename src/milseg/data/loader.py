"""Batches of bags: photos read, transformed and padded, ahead of the network that learns from them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from milseg.config import TrainConfig
from milseg.data.bags import VOID, Bag, BagSet, load_mask, load_photo
from milseg.data.image import UInt8, fit_size, normalise
from milseg.data.sampler import bag_at, mixed
from milseg.data.transforms import Sample, Transform, apply, find_transforms, window_tags
from milseg.utils.parallel import one_thread, prefetch_map, processors

MOST_WORKERS = 8  # threads that decode; more wait for Python's lock
STREAM = 8  # of the random numbers of torchvision's transforms

Segmenting = Callable[[UInt8], torch.Tensor]  # photo uint8 [H, W, 3] to int64 [h, w]


@dataclass(frozen=True, kw_only=True)
class BagBatch:
    """A padded batch.

    Attributes:
        images: float32 [B, 3, H, W], normalised; padding at the right and the bottom is 0, the mean colour.
        sizes: int64 [B, 2], each photo's own (height, width) before padding.
        tags: int8 [B, C].
        masks: uint8 [B, H, W] with VOID on padding, or None.
        segments: int64 [B, h, w], the segment of each score-map cell, -1 on padding; or None.
        names: the bags' names.
    """

    images: torch.Tensor
    sizes: torch.Tensor
    tags: torch.Tensor
    masks: torch.Tensor | None
    names: tuple[str, ...]
    segments: torch.Tensor | None = None

    def to(self, device: torch.device) -> BagBatch:
        def moved(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            sizes=self.sizes.to(device, non_blocking=True),
            tags=self.tags.to(device, non_blocking=True),
            masks=moved(self.masks),
            segments=moved(self.segments),
        )

    def take(self, rows: Sequence[int], height: int, width: int) -> BagBatch:
        """Some of the bags, padded at the right and the bottom to `height` and `width` pixels."""
        index = list(rows)
        down, right = height - self.images.shape[-2], width - self.images.shape[-1]
        pad = (0, right, 0, down)
        return BagBatch(
            images=F.pad(self.images[index], pad),
            sizes=self.sizes[index],
            tags=self.tags[index],
            masks=None if self.masks is None else F.pad(self.masks[index], pad, value=VOID),
            names=tuple(self.names[row] for row in index),
            segments=None if self.segments is None else self.segments[index],
        )


@dataclass(frozen=True, kw_only=True)
class Example:
    """A bag as the network takes it: image float32 [3, h, w], mask uint8 [h, w], segments int64 [h', w']."""

    name: str
    image: torch.Tensor
    tags: tuple[int, ...]
    mask: UInt8 | None = None
    segments: torch.Tensor | None = None


def collate(examples: Sequence[Example]) -> BagBatch:
    """Examples of any sizes as one batch, padded at the right and the bottom to the largest of them."""
    first = examples[0]
    return BagBatch(
        images=_padded([example.image for example in examples], 0.0),
        sizes=torch.tensor([example.image.shape[1:] for example in examples], dtype=torch.int64),
        tags=torch.tensor([example.tags for example in examples], dtype=torch.int8),
        masks=None if first.mask is None else _padded([_as_tensor(e.mask) for e in examples], VOID),
        names=tuple(example.name for example in examples),
        segments=None if first.segments is None else _padded([_as_tensor(e.segments) for e in examples], -1),
    )


def _as_tensor(values: UInt8 | torch.Tensor | None) -> torch.Tensor:
    assert values is not None, "one example of a batch has masks or segments, another has none"
    return values if isinstance(values, torch.Tensor) else torch.from_numpy(np.array(values, copy=True))


def _padded(maps: Sequence[torch.Tensor], value: float) -> torch.Tensor:
    """Maps [..., h, w] of any sizes as one, [B, ..., H, W]."""
    size = [max(one.shape[axis] for one in maps) for axis in (-2, -1)]
    batch = maps[0].new_full((len(maps), *maps[0].shape[:-2], *size), value)
    for row, one in zip(batch, maps, strict=True):
        row[..., : one.shape[-2], : one.shape[-1]] = one
    return batch


def read_sample(bag: Bag, bag_set: BagSet, *, longest_side: int | None, with_masks: bool) -> Sample:
    """A bag's photo, and its mask where asked for; without `with_masks` no mask file is opened.

    Raises:
        UserError: the photo or the mask cannot be read.
    """
    photo = load_photo(bag)
    size = (photo.shape[0], photo.shape[1])
    mask = load_mask(bag, bag_set, size=size) if with_masks else None
    return Sample(photo=photo, size=fit_size(*size, longest_side), tags=bag.tags, mask=mask)


def as_example(name: str, sample: Sample, segment: Segmenting | None = None) -> Example:
    """A sample at its training size as the network takes it.

    Args:
        segment: gives the segments of a photo on the score map, for rules that choose whole segments.
    """
    return Example(
        name=name,
        image=normalise(sample.photo),
        tags=sample.tags,
        mask=sample.mask,
        segments=None if segment is None else segment(np.ascontiguousarray(sample.photo)),
    )


def load_batch(
    bag_set: BagSet, indices: Iterable[int], *, longest_side: int | None = None, with_masks: bool = False
) -> BagBatch:
    """Read some bags of a set as they are, and pad them to one size.

    Args:
        longest_side: photos larger than this are made smaller (never larger); None keeps each photo's own size.
        with_masks: also read the masks.

    Raises:
        UserError: a photo or a mask cannot be read.
    """
    bags = [bag_set.bags[index] for index in indices]
    samples = [read_sample(bag, bag_set, longest_side=longest_side, with_masks=with_masks) for bag in bags]
    return collate([as_example(bag.name, one.resized()) for bag, one in zip(bags, samples, strict=True)])


class Loader:
    """The batches of a training run, keyed by seed and step: any of them can be made again by itself.

    Photos are decoded and transformed by several threads, a batch ahead of the network.

    Args:
        rows: which bags of each batch this process reads.
        segment: as in `as_example`.
        transform: a transform of torchvision (v2) after those of `config.augment`, for photo and mask alike. It draws
            from torch's one generator, so it runs on the calling thread, between steps.
    """

    def __init__(
        self,
        bags: BagSet,
        config: TrainConfig,
        *,
        rows: slice,
        with_masks: bool,
        segment: Segmenting | None = None,
        transform: Callable[..., Any] | None = None,
    ) -> None:
        self.bags, self.config, self.rows, self.with_masks = bags, config, rows, with_masks
        self.segment, self.transform = segment, transform
        self.transforms: tuple[Transform, ...] = find_transforms(config.augment)

    def batches(self, start: int) -> Generator[BagBatch | Exception, None, None]:
        """This process's part of each batch from step `start` on, or why a batch cannot be made."""
        count = len(range(*self.rows.indices(self.config.batch_size)))
        workers = min(MOST_WORKERS, processors())
        found: list[Example] = []
        failure: Exception | None = None
        ahead = prefetch_map(
            self._work, self._positions(start), workers=workers, waiting=count, begin=one_thread
        )
        for number, (position, made) in enumerate(ahead, 1):
            if isinstance(made, Exception):
                failure = failure or made
            elif isinstance(made, Sample):
                found.append(self._transformed(position, made))
            else:
                found.append(made)
            del made  # the next batch is made while this one is used
            if number % count == 0:
                yield failure or collate(found)
                found, failure = [], None

    def _positions(self, start: int) -> Iterator[int]:
        size = self.config.batch_size
        for step in range(start, self.config.max_steps):
            self.bags.fetch_ahead(seed=self.config.seed, position=step * size)
            yield from range(step * size, (step + 1) * size)[self.rows]

    def _bag(self, position: int) -> Bag:
        number = bag_at(position, len(self.bags), seed=self.config.seed, groups=self.bags.groups)
        return self.bags.bags[number]

    def _work(self, position: int) -> Sample | Example | Exception:
        """One bag, as far as it can be made beside the network."""
        try:
            bag, seed = self._bag(position), self.config.seed
            sample = read_sample(
                bag, self.bags, longest_side=self.config.longest_side, with_masks=self.with_masks
            )
            sample = apply(self.transforms, sample, seed=seed, position=position)
            return sample if self.transform else as_example(bag.name, sample, self.segment)
        except Exception as error:  # raised where the batch is used, once every process knows of it
            return error

    def _transformed(self, position: int, sample: Sample) -> Example:
        assert self.transform is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mixed(self.config.seed, STREAM, position))
            sample = through_torchvision(sample, self.transform)
        return as_example(self._bag(position).name, sample, self.segment)


def through_torchvision(sample: Sample, transform: Callable[..., Any]) -> Sample:
    """A sample after a transform of torchvision (v2), which moves photo, mask and points alike.

    A present class that its mask no longer shows becomes UNKNOWN. Without a mask the tags stay: leave out transforms
    that cut things away.
    """
    from torchvision import tv_tensors

    height, width = sample.photo.shape[:2]
    given: dict[str, Any] = {"photo": tv_tensors.Image(np.array(sample.photo.transpose(2, 0, 1)))}
    if sample.mask is not None:
        given["mask"] = tv_tensors.Mask(np.array(sample.mask))
    if sample.points is not None:
        across_down = torch.from_numpy(sample.points[:, ::-1].copy())
        given["points"] = tv_tensors.KeyPoints(across_down, canvas_size=(height, width))
    made = transform(given)
    photo = np.ascontiguousarray(made["photo"].permute(1, 2, 0).numpy())
    mask = np.asarray(made["mask"].numpy()) if "mask" in made else None
    points = made["points"].numpy()[:, ::-1] if "points" in made else None
    tags = sample.tags if mask is None else window_tags(sample.tags, mask)
    size = (photo.shape[0], photo.shape[1])
    return replace(sample, photo=photo, size=size, mask=mask, points=points, tags=tags)
