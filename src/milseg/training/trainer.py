"""The training loop: photos and tags in, a trained network out.

Everything random in a step is keyed by the seed and the step number, so a run that was stopped goes on as if
it had not been. Several processes share a step's bags (`milseg.distributed.collectives`); wide and tall photos go
through the network apart, in pieces if memory is short (`milseg.training.grad_accumulation`); the sums are
those of one process at once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from milseg.config import TrainConfig
from milseg.data.bags import BagSet
from milseg.data.loader import BagBatch, Loader
from milseg.data.sampler import epoch_order, mixed
from milseg.distributed import collectives, preemption
from milseg.errors import UserError
from milseg.models.fcn import FCN, freeze
from milseg.rules import find_rule
from milseg.rules.entry import RuleEntry
from milseg.training.callbacks import Callback, MetricsFile, ProgressBar, StepFunction
from milseg.training.checkpoint import load_state, save_state
from milseg.training.feature_standardizer import PHOTOS, FeatureStandardizer
from milseg.training.grad_accumulation import (
    AspectGroup,
    accumulated,
    aspect_groups,
    aspect_sides,
    dropout_of,
    refuse_to_divide,
    sees_whole,
)
from milseg.training.loss import photo_segments, scores_loss
from milseg.training.optimizer import (
    BIAS_RATE,
    build_optimizer,
    find_schedule,
    learning_rate_at,
    parameter_groups,
    set_learning_rate,
)
from milseg.utils.devices import autocast, compiled, loss_scaler, memory_format
from milseg.utils.files import PathLike, as_path
from milseg.utils.memory import MemoryBound

Validate = Callable[[int], Mapping[str, Any] | None]


def fit(
    model: FCN,
    bags: BagSet,
    config: TrainConfig,
    *,
    rule: RuleEntry | None = None,
    transform: Callable[..., Any] | None = None,
    out: PathLike | None = None,
    device: torch.device | str | None = None,
    resume: bool = False,
    progress: bool = True,
    on_step: Callable[[int, float], None] | None = None,
    callbacks: Sequence[Callback] = (),
    validate: Validate | None = None,
) -> list[dict[str, float]]:
    """Train `model` in place, in this process or in all of torch.distributed's default group.

    Args:
        model: on any device; moved to `device`.
        bags: the training set, the same in every process. Masks are read only if the rule learns from masks.
        rule: in place of `config.rule`, for a function of your own from Python.
        transform: a transform of torchvision (v2), applied to photos and masks after `config.augment`.
        out: folder for `metrics.jsonl` and `checkpoint.safetensors`, which the first process writes and all read;
            None writes nothing.
        resume: go on from the checkpoint in `out`, if there is one.
        on_step: called after each step with its number and loss, in every process.
        callbacks: told of each step, validation and checkpoint; see `milseg.training.callbacks`.
        validate: called in the first process after each step, with how many steps are done. It returns scores, which
            the callbacks are told, or None if no validation is due.

    Returns:
        One record a step: step, loss, learning_rate, images_per_second, seconds. In other processes than the first a
        run that goes on has the records of the new steps alone.

    Raises:
        UserError: no bags; unknown rule, optimizer, schedule or augmentation; masks missing for a rule that needs
            them; a loss that is not finite; a batch that cannot be divided as it is asked for.
        Stopped: a signal asked for it (`milseg.distributed.preemption`); the checkpoint in `out` holds every step
            that was done.
    """
    told = [*callbacks, *([StepFunction(on_step)] if on_step else [])]
    if progress:
        name = config.rule if rule is None else rule.about or "own rule"
        told.insert(0, ProgressBar(name, config.max_steps))
    trainer = Trainer(
        model,
        bags,
        config,
        entry=rule or find_rule(config.rule),
        transform=transform,
        out=None if out is None else as_path(out),
        device=torch.device(device or "cpu"),
        callbacks=told,
        validate=validate,
    )
    return trainer.run(resume=resume)


class Peers(NamedTuple):
    """What the processes told each other in a step's one exchange.

    Attributes:
        loss: the sum of their parts.
        failed: whether one of them met a mistake since the exchange before.
        stop: whether a signal asked one of them to stop.
        unreadable: whether one of them could not read its part of the next batch.
        sides: the next batch's sides, as `aspect_groups` takes them.
    """

    loss: float
    failed: bool
    stop: bool
    unreadable: bool
    sides: list[int]


class Trainer:
    """A training run; `fit` is the public way to one.

    A step is: `forward_backward` over the batch's aspect groups and their pieces (`micro_step`), one exchange with the
    other processes, `update`, `after_step`.
    """

    def __init__(
        self,
        model: FCN,
        bags: BagSet,
        config: TrainConfig,
        *,
        entry: RuleEntry,
        transform: Callable[..., Any] | None,
        out: Path | None,
        device: torch.device,
        callbacks: Sequence[Callback],
        validate: Validate | None,
    ) -> None:
        if not len(bags):
            raise UserError(f"{bags.name}: no photos to train on")
        self.model, self.bags, self.config, self.entry = model, bags, config, entry
        self.transform, self.out, self.device, self.validate = transform, out, device, validate
        self.is_main = collectives.is_main()
        self.metrics = MetricsFile(out / "metrics.jsonl" if out is not None and self.is_main else None)
        self.callbacks: list[Callback] = [self.metrics, *callbacks]
        self.mistake: UserError | None = None  # met since the last exchange, to be told in the next
        self.memory = MemoryBound()

    def run(self, *, resume: bool) -> list[dict[str, float]]:
        """Train to the end, or to a signal's stop; returns one record a step."""
        self.prepare()
        start = self.restore() if self._claim_folder(resume=resume) else 0
        self._start_alike(start)
        self.metrics.on_start(start)
        self.began = time.monotonic() - (self.metrics.history[-1]["seconds"] if self.metrics.history else 0.0)
        for callback in self.callbacks[1:]:
            callback.on_start(start)
        try:
            with preemption.deferred():
                self._train(start)
        finally:
            for callback in self.callbacks:
                callback.on_end()
        self.model.requires_grad_(True).eval()
        return self.metrics.history

    # before the first step

    def prepare(self) -> None:
        """The network on its device, the rule, the optimizer and the loader."""
        model, config, entry = self.model, self.config, self.entry
        model.to(self.device, memory_format=memory_format(model, self.device))  # type: ignore[call-overload]
        model.train()
        if not config.dropout:
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.eval()
        refuse_to_divide(model, entry, config)
        find_schedule(config.schedule)  # a mistake in its name is told before the first step
        freeze(model, config.frozen_stride)
        self.network = compiled(model) if config.compile else model
        self.pieces, self.together = config.accumulate, sees_whole(model, entry)
        self.rule = entry.build(len(self.bags.classes))
        self._prepare_optimizer()
        self._prepare_loader()

    def _prepare_optimizer(self) -> None:
        config = self.config
        groups = parameter_groups(self.model, config)
        self.learned = self.rule.to(self.device).train() if isinstance(self.rule, nn.Module) else None
        if self.learned is not None:
            decay, rate = config.weight_decay, config.score_rate
            parameters = list(self.learned.parameters())
            groups.append({"params": parameters, "factor": rate, "weight_decay": decay})
        self.standardizer = None
        if config.standardize_features:
            features = self.model.score_layer.in_channels
            self.standardizer = FeatureStandardizer(features, bias_rate=BIAS_RATE).to(self.device)
        self.optimizer = build_optimizer(groups, config)
        self.parameters: list[nn.Parameter] = [p for group in groups for p in group["params"]]
        self.scaler = loss_scaler(config.precision, self.device)

    def _prepare_loader(self) -> None:
        """A rule that looks across bags needs all of them in every process, whose network sees its own part."""
        count, entry = self.config.batch_size, self.entry
        self.own = collectives.rank_slice(count)
        read, self.rows = slice(0, count), self.own
        if not entry.sees_batch:
            read, self.rows = self.own, slice(0, self.own.stop - self.own.start)
        self.loader = Loader(
            self.bags,
            self.config,
            rows=read,
            with_masks=entry.supervision == "masks" or self.config.mask_weight > 0,
            segment=partial(photo_segments, self.model) if entry.needs_segments else None,
            transform=self.transform,
        )

    def _claim_folder(self, *, resume: bool) -> bool:
        """Make the folder; whether there is a checkpoint to go on from."""
        if self.out is None:
            return False
        with collectives.errors_on_all_ranks():
            if self.is_main:
                self.out.mkdir(parents=True, exist_ok=True)
                if not resume:
                    # One left by an earlier run must not be what a later resume goes on from.
                    self.checkpoint.unlink(missing_ok=True)
        return resume and self.checkpoint.exists()

    @property
    def checkpoint(self) -> Path:
        assert self.out is not None
        return self.out / "checkpoint.safetensors"

    @property
    def beside(self) -> dict[str, nn.Module]:
        """What the run has besides its network, by name."""
        modules = {"rule": self.learned, "standard": self.standardizer}
        return {name: module for name, module in modules.items() if module is not None}

    def restore(self) -> int:
        """Read the checkpoint; returns the step to go on at."""
        with collectives.errors_on_all_ranks():
            return load_state(
                self.checkpoint,
                self.model,
                self.optimizer,
                config=asdict(self.config),
                beside=self.beside,
                scaler=self.scaler,
            )

    def _start_alike(self, start: int) -> None:
        """Measure the features of a new run, and take over the first process's weights."""
        if self.standardizer is not None and not start:
            with collectives.errors_on_all_ranks():
                if self.is_main:
                    bags, config = self.bags, self.config
                    order = epoch_order(len(bags), seed=config.seed, epoch=0, groups=bags.groups)
                    shown = bags.take(order[:PHOTOS]).bags
                    self.standardizer.measure(self.model, shown, longest_side=config.longest_side)
        parts = (self.model, *self.beside.values())
        collectives.same_start(tensor for part in parts for tensor in part.state_dict().values())

    # step by step

    def _train(self, start: int) -> None:
        with closing(self.loader.batches(start)) as batches:
            batch = next(batches, None)
            peers = self._exchange(0.0, batch)
            for step in range(start, self.config.max_steps):
                batch, peers = self.train_step(step, self._readable(batch, peers), peers, batches)
                self.memory.after_step()
        if self.config.max_steps > start:
            self._finish(self.config.max_steps, stopped=preemption.asked())

    def train_step(
        self, step: int, batch: BagBatch, peers: Peers, batches: Iterator[BagBatch | Exception]
    ) -> tuple[BagBatch | Exception | None, Peers]:
        """One update of the weights; returns the batch after this one, and what the processes said of it."""
        began = time.monotonic()
        rate = learning_rate_at(step, self.config)
        set_learning_rate(self.optimizer, rate)
        loss = self.forward_backward(step, batch, peers.sides)
        upcoming = next(batches, None)
        peers = self._exchange(loss, upcoming)
        if peers.stop and collectives.size() > 1:  # without this step, whose update is left out
            self._finish(step, stopped=True)
        if not math.isfinite(peers.loss):
            raise collectives.SharedError(
                f"the loss became {peers.loss} in step {step}; the last checkpoint is kept. Lower the "
                f"learning rate (it was {rate:g})"
            )
        self.update()
        self.after_step(step, peers.loss, rate, time.monotonic() - began)
        return upcoming, peers

    def forward_backward(self, step: int, batch: BagBatch, sides: Sequence[int]) -> float:
        """The gradients of this process's bags; returns their part of the loss."""
        groups = aspect_groups(batch.sizes[self.rows], sides, together=self.together)
        self.optimizer.zero_grad(set_to_none=True)
        try:
            loss, self.pieces = accumulated(
                partial(self.micro_step, step, batch),
                self.optimizer.zero_grad,
                groups,
                self.pieces,
                divisible=not self.together,
            )
        except UserError as error:
            # A rule that looks across bags exchanges scores in a micro step: the others cannot be told.
            if collectives.size() == 1 or self.entry.sees_batch:
                raise
            self.mistake = error
            return 0.0
        if self.entry.sees_batch:
            # Every process has found the loss of all bags, and the whole gradient of a learned rule.
            loss /= collectives.size()
            if self.learned is not None and not self.is_main:
                self.learned.zero_grad(set_to_none=False)
        return loss

    def micro_step(self, step: int, batch: BagBatch, piece: list[int], group: AspectGroup) -> float:
        """Add up the gradients of some of this process's bags; returns their part of the loss."""
        config, count = self.config, self.config.batch_size
        torch.manual_seed(mixed(config.seed, 2, step))
        part = batch.take([self.rows.start + row for row in piece], group.height, group.width).to(self.device)
        numbers = [self.own.start + row for row in piece]
        with dropout_of(self.model, numbers, count), autocast(config.precision, self.device):
            scores = self.network(part.images)
        scores = scores.float()
        if self.entry.sees_batch:
            scores = collectives.all_gather_rows(scores, count)
            part = batch.take(range(count), group.height, group.width).to(self.device)
        loss = scores_loss(self.model, scores, part, self.entry, config, self.rule, count=count)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def update(self) -> None:
        """Sum the gradients over the processes, and step."""
        collectives.sum_gradients(self.parameters)
        if self.standardizer is not None:
            self.standardizer.inward(self.model.score_layer)
        if self.config.max_gradient is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.config.max_gradient)
        if self.standardizer is not None:
            self.standardizer.outward(self.model.score_layer)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def after_step(self, step: int, loss: float, rate: float, seconds: float) -> None:
        """Tell the callbacks, validate, and write the checkpoint that is due."""
        record = {
            "step": step,
            "loss": loss,
            "learning_rate": rate,
            "images_per_second": round(self.config.batch_size / max(seconds, 1e-9), 3),
            "seconds": round(time.monotonic() - self.began, 3),
        }
        done = step + 1
        with self._noted():
            for callback in self.callbacks:
                callback.on_step(record)
            # Before the checkpoint: a run that is killed in between validates again, and skips nothing.
            if self.validate is not None and self.is_main and (scores := self.validate(done)) is not None:
                for callback in self.callbacks:
                    callback.on_validation(done, scores)
            if done % self.config.checkpoint_every == 0 and done < self.config.max_steps:
                self._save(done)
        if preemption.asked() and collectives.size() == 1 and done < self.config.max_steps:
            self._finish(done, stopped=True)

    def _save(self, done: int) -> None:
        if self.out is None or not self.is_main:
            return
        save_state(
            self.checkpoint,
            self.model,
            self.optimizer,
            done,
            config=asdict(self.config),
            beside=self.beside,
            scaler=self.scaler,
        )
        for callback in self.callbacks:
            callback.on_checkpoint(done, self.checkpoint)

    def _finish(self, done: int, *, stopped: bool) -> None:
        """The last checkpoint of this call.

        Raises:
            Stopped: a signal asked for it.
        """
        if self.mistake is not None or collectives.size() > 1:
            with collectives.errors_on_all_ranks():
                if self.mistake is not None:
                    raise self.mistake
        with collectives.errors_on_all_ranks():
            self._save(done)
        if collectives.any_of(stopped):
            checkpoint = None if self.out is None else self.checkpoint
            raise preemption.stopped_after(done, self.config.max_steps, checkpoint)

    # between processes

    def _exchange(self, loss: float, upcoming: BagBatch | Exception | None) -> Peers:
        """The one exchange of a step; raises the mistake that a process met since the last.

        Args:
            loss: this process's part.
            upcoming: the next batch, whose sides all processes must know; None after the last.
        """
        sides = [0, 0, 0, 0]
        if isinstance(upcoming, BagBatch):
            sides = aspect_sides(upcoming.sizes[self.rows], together=self.together)
        unreadable = isinstance(upcoming, UserError)
        own = [loss, self.mistake is not None, preemption.asked(), unreadable, *sides]
        losses, failed, stop, unread, *all_sides = zip(*collectives.all_gather_vector(own), strict=True)
        if any(failed):
            collectives.raise_on_all_ranks(self.mistake)
        highest = [int(max(side)) for side in all_sides]
        return Peers(sum(losses), any(failed), any(stop), any(unread), highest)

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """A mistake that this process alone meets in the block is told to the others in the next exchange."""
        try:
            yield
        except UserError as error:
            if collectives.size() == 1:
                raise
            self.mistake = error

    def _readable(self, batch: BagBatch | Exception | None, peers: Peers) -> BagBatch:
        """The batch, if every process could read its part.

        Raises:
            UserError: the first process's reason.
        """
        if peers.unreadable:
            collectives.raise_on_all_ranks(batch if isinstance(batch, UserError) else None)
        if isinstance(batch, Exception):
            raise batch
        assert batch is not None
        return batch
