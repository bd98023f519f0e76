"""The training loop: photos and tags in, a trained network out.

Everything random in a step is keyed by the seed and the step number, so a run that was stopped goes on as if
it had not been. Several processes share a step's bags (`milseg.distributed.collectives`); wide and tall photos go
through the network apart, in pieces where memory asks for it (`milseg.training.grad_accumulation`); the sums are
those of one process at once.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from milseg.config import TrainConfig
from milseg.data.bags import BagBatch, BagSet, load_batch
from milseg.data.image import denormalise
from milseg.data.sampler import epoch_order, mixed
from milseg.distributed import collectives, preemption
from milseg.errors import UserError
from milseg.inference.score_map import upsample
from milseg.models.fcn import FCN, freeze
from milseg.refine.superpixels import superpixels
from milseg.rules import find_rule
from milseg.rules.choosing import Rule
from milseg.rules.entry import RuleEntry
from milseg.training.checkpoint import load_state, save_state
from milseg.training.feature_standardizer import PHOTOS, FeatureStandardizer
from milseg.training.grad_accumulation import (
    Kind,
    accumulated,
    dropout_of,
    kinds_of,
    refuse_to_divide,
    sees_whole,
    taken,
)
from milseg.training.schedule import batch_at, learning_rate_at, zooms_at
from milseg.utils.devices import autocast, compiled, loss_scaler
from milseg.utils.files import PathLike, as_path

BIAS_RATE = 2.0  # times the rate of weights (paper, "Experiments")


def parameter_groups(model: FCN, config: TrainConfig) -> list[dict[str, Any]]:
    """SGD's groups: weights with decay; biases at twice the rate without; the score layer at its own rate.

    What has one dimension counts as a bias, a norm layer's scale too: the paper's network has none, and decay
    would pull it towards a layer that passes nothing on.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (parameter.ndim > 1, name.startswith("score_layer."))
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "factor": (1.0 if is_weight else BIAS_RATE) * (config.score_rate if is_score else 1.0),
            "weight_decay": config.weight_decay if is_weight else 0.0,
        }
        for (is_weight, is_score), parameters in groups.items()
    ]


def batch_loss(
    model: FCN, batch: BagBatch, entry: RuleEntry, config: TrainConfig, rule: Rule | None = None
) -> torch.Tensor:
    """The mean over the bags of the rule's loss, and of the cross entropy to the bags' masks where it has a weight."""
    return scores_loss(model, model(batch.images), batch, entry, config, rule, count=len(batch.names))


def scores_loss(
    model: FCN,
    scores: torch.Tensor,
    batch: BagBatch,
    entry: RuleEntry,
    config: TrainConfig,
    rule: Rule | None,
    *,
    count: int,
) -> torch.Tensor:
    """These bags' part of the mean over a batch of `count` bags."""
    loss = config.rule_weight * (rule_loss(model, scores, batch, entry, rule).sum() / count)
    if config.mask_weight:
        loss = loss + config.mask_weight * (
            rule_loss(model, scores, batch, find_rule("oracle")).sum() / count
        )
    return loss


def rule_loss(
    model: FCN, scores: torch.Tensor, batch: BagBatch, entry: RuleEntry, rule: Rule | None = None
) -> torch.Tensor:
    """The rule's loss of each bag, [B].

    Rules that learn from masks see the scores interpolated to pixels, as a supervised FCN does; the others
    see the coarse map.

    Args:
        rule: what `entry.build` gave, for rules that have parameters.

    Raises:
        UserError: one's own rule gives something else.
    """
    rule = rule or entry.rule
    if entry.supervision == "masks":
        height, width = batch.images.shape[-2:]
        fine = upsample(scores.float(), (height, width), stride=model.stride, offset=model.offset)
        rows = torch.arange(height, device=fine.device)[None, :, None] < batch.sizes[:, 0, None, None]
        columns = torch.arange(width, device=fine.device)[None, None] < batch.sizes[:, 1, None, None]
        loss = rule(fine, batch.tags, rows & columns, masks=batch.masks)
    else:
        valid = model.valid_mask(batch.sizes, (scores.shape[-2], scores.shape[-1]))
        more = {"segments": batch_segments(model, batch, valid)} if entry.needs_segments else {}
        loss = rule(scores, batch.tags, valid, **more)
    if not isinstance(loss, torch.Tensor) or loss.shape != (len(batch.names),):
        found = (
            f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else f"type {type(loss).__name__}"
        )
        raise UserError(f"the rule gave a loss of {found}; expected one number a bag, ({len(batch.names)},)")
    return loss


def batch_segments(model: FCN, batch: BagBatch, valid: torch.Tensor) -> torch.Tensor:
    """Superpixels of each photo of a batch on the score map, int64 [B, h, w]; -1 on padding."""
    size = (valid.shape[1], valid.shape[2])
    segments = torch.full(valid.shape, -1, dtype=torch.int64)
    for number, (image, (height, width)) in enumerate(zip(batch.images, batch.sizes.tolist(), strict=True)):
        here = model.map_size(height, width)
        found = superpixels(
            denormalise(image[:, :height, :width]), here, stride=model.stride, offset=model.offset
        )
        rows, columns = min(here[0], size[0]), min(here[1], size[1])
        segments[number, :rows, :columns] = found[:rows, :columns]
    return segments.to(valid.device).masked_fill(~valid, -1)


def _batches(
    bags: BagSet, config: TrainConfig, start: int, with_masks: bool, rows: slice
) -> Iterator[BagBatch]:
    """Bags `rows` of each batch from step `start` on; the next ones are read while the network works.

    Raises:
        UserError: a photo or mask cannot be read, in whichever process.
    """

    def read(step: int) -> BagBatch:
        indices, flips = batch_at(step, len(bags), config, bags.groups)
        bags.fetch_ahead(seed=config.seed, position=step * config.batch_size)
        return load_batch(
            bags,
            indices[rows],
            longest_side=config.longest_side,
            with_masks=with_masks,
            flips=flips[rows],
            zooms=zooms_at(step, config)[rows] if with_masks else None,
        )

    with ThreadPoolExecutor(max_workers=1) as reader:
        ahead = reader.submit(read, start) if start < config.max_steps else None
        for step in range(start, config.max_steps):
            assert ahead is not None
            with collectives.errors_on_all_ranks():
                batch = ahead.result()
            ahead = reader.submit(read, step + 1) if step + 1 < config.max_steps else None
            yield batch


def fit(
    model: FCN,
    bags: BagSet,
    config: TrainConfig,
    *,
    rule: RuleEntry | None = None,
    out: PathLike | None = None,
    device: torch.device | str | None = None,
    resume: bool = False,
    progress: bool = True,
    on_step: Callable[[int, float], None] | None = None,
) -> list[dict[str, float]]:
    """Train `model` in place by SGD, in this process or in all of torch.distributed's default group.

    Args:
        model: on any device; moved to `device`.
        bags: the training set, the same in every process. Masks are read only if the rule learns from masks.
        rule: in place of `config.rule`, for one's own function from Python.
        out: folder for `metrics.jsonl` and `checkpoint.safetensors`, which the first process writes and all read;
            None writes nothing.
        resume: go on from the checkpoint in `out`, where there is one.
        on_step: called after each step with its number and loss, in every process.

    Returns:
        One record a step: step, loss, learning_rate, images_per_second, seconds. In other processes than the first a
        run that goes on has the records of the new steps alone.

    Raises:
        UserError: no bags; unknown rule; masks missing for a rule that needs them; a loss that is not finite; a batch
            that cannot be divided as it is asked for.
        Stopped: a signal asked for it (`milseg.distributed.preemption`); the checkpoint in `out` holds every step
        that was done.
    """
    entry = rule or find_rule(config.rule)
    if not len(bags):
        raise UserError(f"{bags.name}: no photos to train on")
    device = torch.device(device or "cpu")
    out = None if out is None else as_path(out)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.train()
    if not config.dropout:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.eval()
    refuse_to_divide(model, entry, config)
    freeze(model, config.frozen_stride)
    rule_built = entry.build(len(bags.classes))
    groups = parameter_groups(model, config)
    learned = rule_built.to(device).train() if isinstance(rule_built, nn.Module) else None
    if learned is not None:
        groups.append(
            {
                "params": list(learned.parameters()),
                "factor": config.score_rate,
                "weight_decay": config.weight_decay,
            }
        )
    standard = None
    if config.standardize_features:
        standard = FeatureStandardizer(model.score_layer.in_channels, bias_rate=BIAS_RATE).to(device)
    beside = {
        name: module for name, module in (("rule", learned), ("standard", standard)) if module is not None
    }
    parameters: list[nn.Parameter] = [p for group in groups for p in group["params"]]
    optimiser = torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)
    scaler = loss_scaler(config.precision, device)

    with_masks = entry.supervision == "masks" or config.mask_weight > 0
    history: list[dict[str, float]] = []
    start = 0
    is_main = collectives.is_main()
    if out is not None:
        checkpoint = out / "checkpoint.safetensors"
        with collectives.errors_on_all_ranks():
            if is_main:
                out.mkdir(parents=True, exist_ok=True)
                if not resume:
                    # One left by an earlier run must not be what a later resume goes on from.
                    checkpoint.unlink(missing_ok=True)
        with collectives.errors_on_all_ranks():
            if resume and checkpoint.exists():
                start = load_state(
                    checkpoint, model, optimiser, config=asdict(config), beside=beside, scaler=scaler
                )
        if is_main:
            history = _read_metrics(out / "metrics.jsonl", before=start) if start else []
            _write_metrics(out / "metrics.jsonl", history)
        save = partial(
            save_state, checkpoint, model, optimiser, config=asdict(config), beside=beside, scaler=scaler
        )
    if standard is not None and not start:
        with collectives.errors_on_all_ranks():
            if is_main:
                order = epoch_order(len(bags), seed=config.seed, epoch=0, groups=bags.groups)
                shown = bags.take(order[:PHOTOS]).bags
                standard.measure(model, shown, longest_side=config.longest_side)
    collectives.same_start(
        tensor for part in (model, *beside.values()) for tensor in part.state_dict().values()
    )

    # Where a rule looks across bags each process reads them all, and its network sees its own.
    own = collectives.rank_slice(config.batch_size)
    read, rows = (
        (slice(0, config.batch_size), own) if entry.sees_batch else (own, slice(0, own.stop - own.start))
    )
    pieces, whole = config.accumulate, sees_whole(model, entry)
    network = compiled(model) if config.compile else model

    began, earlier = time.monotonic(), history[-1]["seconds"] if history else 0.0
    bar = tqdm(
        total=config.max_steps, initial=start, desc=f"train {entry_name(config, rule)}", disable=not progress
    )
    with bar, preemption.deferred():
        for step, batch in enumerate(_batches(bags, config, start, with_masks, read), start):
            tick = time.monotonic()
            rate = learning_rate_at(step, config)
            for group in optimiser.param_groups:
                group["lr"] = rate * group["factor"]
            kinds = kinds_of(batch.sizes[rows], together=whole)

            def backward(piece: list[int], kind: Kind, step: int = step, batch: BagBatch = batch) -> float:
                """Add up the gradients of some of this process's bags; returns their part of the loss."""
                torch.manual_seed(mixed(config.seed, 2, step))
                some = taken(batch, [rows.start + row for row in piece], kind.height, kind.width).to(device)
                seen = [own.start + row for row in piece]
                with dropout_of(model, seen, config.batch_size), autocast(config.precision, device):
                    scores = network(some.images)
                scores = scores.float()
                if entry.sees_batch:
                    scores = collectives.all_gather_rows(scores, config.batch_size)
                    some = taken(batch, list(range(config.batch_size)), kind.height, kind.width).to(device)
                loss = scores_loss(model, scores, some, entry, config, rule_built, count=config.batch_size)
                scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                return float(loss.detach())

            optimiser.zero_grad(set_to_none=True)
            # Such a rule exchanges scores in here, so that a mistake of one process cannot be told to the others.
            with nullcontext() if entry.sees_batch else collectives.errors_on_all_ranks():
                value, pieces = accumulated(backward, optimiser.zero_grad, kinds, pieces, divisible=not whole)
            value = collectives.total(value)
            if entry.sees_batch:
                # Every process has found the loss of all bags, and the whole gradient of a learned rule.
                value /= collectives.size()
                if learned is not None and not is_main:
                    learned.zero_grad(set_to_none=False)
            if not math.isfinite(value):
                raise collectives.SharedError(
                    f"the loss became {value} in step {step}; the last checkpoint is kept. Lower the "
                    f"learning rate (it was {rate:g})"
                )
            collectives.sum_gradients(parameters)
            if standard is not None:
                standard.inward(model.score_layer)
            if config.max_gradient is not None:
                scaler.unscale_(optimiser)
                nn.utils.clip_grad_norm_(parameters, config.max_gradient)
            if standard is not None:
                standard.outward(model.score_layer)
            scaler.step(optimiser)
            scaler.update()
            now = time.monotonic()
            record = {
                "step": step,
                "loss": value,
                "learning_rate": rate,
                "images_per_second": round(config.batch_size / max(now - tick, 1e-9), 3),
                "seconds": round(earlier + now - began, 3),
            }
            history.append(record)
            bar.update()
            bar.set_postfix(loss=f"{value:.3f}", refresh=False)
            done = step + 1
            with collectives.errors_on_all_ranks():
                if out is not None and is_main:
                    with open(out / "metrics.jsonl", "a", encoding="utf-8") as file:
                        file.write(json.dumps(record) + "\n")
                # Before the checkpoint: a run that is killed in between comes by here again, and skips nothing.
                if on_step is not None:
                    on_step(step, value)
                due = done % config.checkpoint_every == 0 and done < config.max_steps
                if out is not None and is_main and due:
                    save(done)
            stopped = collectives.any_of(preemption.asked())
            with collectives.errors_on_all_ranks():
                if out is not None and is_main and (stopped or done == config.max_steps):
                    save(done)
            if stopped:
                raise preemption.stopped_after(done, config.max_steps, None if out is None else checkpoint)
    model.requires_grad_(True).eval()
    return history


def entry_name(config: TrainConfig, rule: RuleEntry | None) -> str:
    return config.rule if rule is None else rule.about or "own rule"


def _read_metrics(path: Path, *, before: int) -> list[dict[str, float]]:
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break  # the last line of a killed run may be cut short
    return [record for record in records if record["step"] < before]


def _write_metrics(path: Path, history: list[dict[str, float]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in history), encoding="utf-8")
