"""The training loop: its batches, its one step, and that a stopped run goes on bit for bit."""

from __future__ import annotations

import json
import math
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import milseg.data.bags
import milseg.training.trainer
from milseg.config import TrainConfig
from milseg.data.bags import Bag, BagSet
from milseg.data.image import normalise
from milseg.data.loader import Example, collate, load_batch
from milseg.data.sampler import batch_at
from milseg.data.transforms import Sample, find_transforms
from milseg.distributed import preemption
from milseg.errors import UserError
from milseg.models.backbones import build_fcn
from milseg.models.fcn import FCN, freeze
from milseg.refine.superpixels import superpixels
from milseg.rules import find_rule
from milseg.rules.choosing import mil_loss
from milseg.rules.entry import RuleEntry
from milseg.training.callbacks import Callback
from milseg.training.checkpoint import load_state
from milseg.training.loss import batch_loss, fit_segments, photo_segments
from milseg.training.optimizer import OPTIMIZERS, SCHEDULES, learning_rate_at, parameter_groups
from milseg.training.trainer import fit

CLASSES = ("background", "red", "blue")
QUICK = TrainConfig(max_steps=6, batch_size=2, learning_rate=1e-2, checkpoint_every=2)


def toy(count: int = 5, side: int = 16, *, mask: bool | Path = True) -> BagSet:
    """Grey photos with a red or a blue square somewhere."""
    random = np.random.default_rng(0)
    bags = []
    for i in range(count):
        photo = random.integers(100, 140, (side, side, 3)).astype(np.uint8)
        number = 1 + i % 2
        top, left = random.integers(0, side // 2, 2)
        square = (slice(top, top + side // 2), slice(left, left + side // 2))
        photo[square] = (230, 20, 20) if number == 1 else (20, 20, 230)
        truth = np.zeros((side, side), dtype=np.uint8)
        truth[square] = number
        tags = (1, int(number == 1), int(number == 2))
        bags.append(Bag(name=f"b{i}", photo=photo, tags=tags, mask=mask if isinstance(mask, Path) else truth))
        if mask is False:
            bags[-1] = replace(bags[-1], mask=None)
    return BagSet(name="toy", classes=CLASSES, bags=tuple(bags), tags_from="generator")


def tiny(seed: int = 0) -> FCN:
    return build_fcn("tiny", 3, seed=seed)


def pointwise(classes: int = 3, seed: int = 0) -> FCN:
    """A network that looks at each pixel alone: padding cannot leak into a photo."""
    torch.manual_seed(seed)
    return FCN(nn.Sequential(), nn.Sequential(), nn.Conv2d(3, classes, 1))


def weights(model: FCN) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def kept(history: list[dict[str, float]]) -> list[tuple[float, float, float]]:
    """What of a record does not depend on the clock."""
    return [(r["step"], r["loss"], r["learning_rate"]) for r in history]


def read_metrics(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


# parameter groups and learning rate


def test_biases_learn_twice_as_fast_without_decay_and_the_score_layer_at_its_own_rate() -> None:
    model = build_fcn("squeezenet1_0", 3)
    config = TrainConfig(weight_decay=0.25, score_rate=10.0)
    told = {}
    for group in parameter_groups(model, config):
        for parameter in group["params"]:
            told[id(parameter)] = (group["factor"], group["weight_decay"])
    names = dict(model.named_parameters())
    assert len(told) == len(names)
    for name, parameter in names.items():
        factor = (2.0 if name.endswith(".bias") else 1.0) * (10.0 if name.startswith("score_layer") else 1.0)
        assert told[id(parameter)] == (factor, 0.0 if name.endswith(".bias") else 0.25), name


def test_a_norm_layers_scale_and_shift_are_treated_as_biases() -> None:
    """The paper's VGG has none. Decay would pull a scale towards 0, a layer that passes nothing on."""
    model = tiny()
    one_dimensional = {
        id(p) for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()
    }
    assert one_dimensional
    for group in parameter_groups(model, TrainConfig()):
        if one_dimensional & {id(p) for p in group["params"]}:
            assert (group["factor"], group["weight_decay"]) == (2.0, 0.0)


def test_parameters_that_are_held_fixed_are_in_no_group() -> None:
    model = tiny()
    model.body.requires_grad_(False)
    groups = parameter_groups(model, TrainConfig())
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in model.score_layer.parameters()}


def test_learning_rate() -> None:
    constant = TrainConfig(learning_rate=0.5, max_steps=4)
    assert [learning_rate_at(step, constant) for step in range(4)] == [0.5] * 4
    linear = replace(constant, schedule="linear")
    assert [learning_rate_at(step, linear) for step in range(4)] == [0.5, 0.375, 0.25, 0.125]
    warm = replace(constant, warmup=2)
    assert [learning_rate_at(step, warm) for step in range(4)] == [0.25, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("backbone", "stride", "first_trained"),
    [
        ("mobilenet_v2", 0, "body.0."),
        ("mobilenet_v2", 2, "body.2."),
        ("mobilenet_v2", 8, "body.7."),
        ("resnet18", 4, "body.layer2."),
        ("vgg16", 8, "body.24."),
        ("tiny", 64, "score_layer."),
    ],
)
def test_layers_up_to_a_stride_are_frozen(backbone: str, stride: int, first_trained: str) -> None:
    model = build_fcn(backbone, 3)
    freeze(model, stride)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained[0].startswith(first_trained)
    names = [name for name, _ in model.named_parameters()]
    assert trained == names[names.index(trained[0]) :]


def test_frozen_layers_keep_their_weights_and_learn_again_later() -> None:
    model = tiny()
    before = weights(model)
    fit(model, toy(), replace(QUICK, frozen_stride=2), progress=False)
    after = weights(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not {name for name in changed if name.startswith(("body.0.", "body.1.", "body.3."))}
    assert "body.6.weight" in changed
    assert all(p.requires_grad for p in model.parameters())


def test_long_gradients_are_made_shorter() -> None:
    """Without momentum and decay one step moves the weights by the rate times the gradient, no longer than told."""
    model = tiny()
    before = weights(model)
    config = replace(QUICK, max_steps=1, learning_rate=1.0, momentum=0.0, weight_decay=0.0, max_gradient=1e-3)
    fit(model, toy(), config, progress=False)
    moved = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    # Biases take twice the rate.
    length = sum(float((d / (2.0 if d.ndim == 1 else 1.0)).square().sum()) for d in moved.values()) ** 0.5
    assert length == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0"),
        ({"max_steps": -1}, "max_steps is -1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"optimizer": "adamw", "standardize_features": True}, "its steps are those of sgd alone"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainConfig(**settings)


# batches


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "lineal"}, "did you mean 'linear'"),
        ({"schedule": "linear(power=2)"}, "schedule linear has no options"),
        ({"optimizer": "adanw"}, "optimizer.*did you mean 'adamw'"),
        ({"optimizer": "sgd(lr=1)"}, "option of optimizer sgd"),
        ({"augment": "flop"}, "augmentation.*did you mean 'flip'"),
    ],
)
def test_names_are_checked_before_the_first_step(settings: dict[str, Any], message: str) -> None:
    steps: list[int] = []
    with pytest.raises(UserError, match=message):
        fit(tiny(), toy(), replace(QUICK, **settings), progress=False, on_step=lambda s, _: steps.append(s))
    assert steps == []


def test_every_bag_once_an_epoch_and_batches_span_epochs() -> None:
    seen = [i for step in range(7) for i in batch_at(step, 7, 3, seed=0)]
    epochs = [seen[start : start + 7] for start in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_batch_larger_than_the_set_holds_bags_several_times() -> None:
    assert sorted(Counter(batch_at(0, 2, 5, seed=0)).values()) == [2, 3]


def test_batches_depend_on_seed_and_step_alone() -> None:
    forward = [batch_at(step, 50, 4, seed=0) for step in range(40)]
    assert [batch_at(step, 50, 4, seed=0) for step in reversed(range(40))] == forward[::-1]
    other = [batch_at(step, 50, 4, seed=1) for step in range(40)]
    assert sum(a == b for a, b in zip(forward, other, strict=True)) <= 1


def test_half_of_the_photos_are_mirrored_drawn_anew_each_time() -> None:
    [flip] = find_transforms("flip")
    slope = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    sample = Sample(photo=slope, size=(1, 2), tags=(1,))
    mirrored = [int(flip(sample, seed=0, position=i).photo[0, 0, 0]) == 3 for i in range(160)]
    assert 50 < sum(mirrored) < 110
    assert [mirrored[i] != mirrored[i + 50] for i in range(110)].count(True) > 20


# one step


@pytest.mark.parametrize("rule", ["max", "oracle"])
def test_two_steps_equal_a_loop_written_by_hand(rule: str) -> None:
    bags, model, twin = toy(4), tiny(), tiny()
    config = TrainConfig(
        rule=rule, max_steps=2, batch_size=4, learning_rate=1e-2, score_rate=3.0, weight_decay=0.1
    )
    history = fit(model, bags, config, progress=False)

    twin.train()
    velocity = {name: torch.zeros_like(p) for name, p in twin.named_parameters()}
    for step in range(2):
        indices = batch_at(step, 4, 4, seed=0)
        batch = load_batch(bags, indices, with_masks=True)
        scores = twin(batch.images)
        if rule == "oracle":
            # Place i is centred on pixel 4 i; the last pixels lie beyond the last centre.
            across = (torch.arange(16) / 4).clamp(0, 3)
            matrix = (1 - (across[:, None] - torch.arange(4)[None]).abs()).clamp_min(0)
            fine = torch.einsum("yi,bcij,xj->bcyx", matrix, scores, matrix)
            assert batch.masks is not None
            loss = nn.functional.cross_entropy(fine, batch.masks.long())
        else:
            log_p = scores.log_softmax(dim=1)
            losses = []
            for b in range(4):
                present = [c for c in range(3) if batch.tags[b, c] == 1]
                losses.append(-sum(log_p[b, c].max() for c in present) / len(present))
            loss = torch.stack(losses).mean()
        torch.testing.assert_close(history[step]["loss"], float(loss.detach()), rtol=1e-5, atol=1e-6)
        gradients = torch.autograd.grad(loss, list(twin.parameters()))
        with torch.no_grad():
            for (name, p), gradient in zip(twin.named_parameters(), gradients, strict=True):
                weight = p.ndim > 1
                velocity[name] = 0.9 * velocity[name] + gradient + (0.1 * p if weight else 0.0)
                rate = 1e-2 * (1.0 if weight else 2.0) * (3.0 if name.startswith("score_layer") else 1.0)
                p -= rate * velocity[name]
    for (name, found), expected in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("rule", ["max", "average", "oracle", "binary-max"])
def test_padding_changes_no_loss(rule: str) -> None:
    """Photos of two sizes in one batch: the mean of their losses by themselves."""
    model = pointwise()
    photos = [torch.randn(3, *size, generator=torch.Generator().manual_seed(1)) for size in ((3, 7), (5, 2))]
    masks = [np.ones((3, 7), dtype=np.uint8), np.full((5, 2), 2, dtype=np.uint8)]
    tags = [(1, 1, 0), (1, 0, 1)]
    entry = find_rule(rule)
    examples = [
        Example(name="a", image=p, tags=t, mask=m) for p, t, m in zip(photos, tags, masks, strict=True)
    ]
    both = batch_loss(model, collate(examples), entry, QUICK)
    alone = [batch_loss(model, collate([example]), entry, QUICK) for example in examples]
    torch.testing.assert_close(both, torch.stack(alone).mean())


def test_the_loss_falls_on_a_toy_from_tags_and_from_masks() -> None:
    for rule in ("max", "oracle"):
        config = TrainConfig(rule=rule, max_steps=30, batch_size=4, learning_rate=1e-2, score_rate=3.0)
        history = fit(tiny(), toy(8), config, progress=False)
        assert np.mean([r["loss"] for r in history[-5:]]) < 0.75 * history[0]["loss"]


def test_no_steps_leave_the_network_as_it_was(tmp_path: Path) -> None:
    model = tiny()
    before = weights(model)
    assert fit(model, toy(), replace(QUICK, max_steps=0), out=tmp_path, progress=False) == []
    assert_same(weights(model), before)
    assert not model.training


def test_dropout_can_be_left_out() -> None:
    bags = toy(2, 64)
    config = TrainConfig(max_steps=1, batch_size=2, dropout=False)
    losses = [
        fit(build_fcn("squeezenet1_0", 3), bags, c, progress=False)[0]["loss"]
        for c in (config, replace(config, seed=9))
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)  # the same two photos, maybe in the other order
    on = fit(build_fcn("squeezenet1_0", 3), bags, replace(config, dropout=True), progress=False)[0]["loss"]
    assert on != losses[0]


# the same again


def test_the_same_seed_gives_the_same_weights_bit_for_bit_and_another_seed_others() -> None:
    config = replace(QUICK, augment="flip")
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed + 5)  # the global state plays no part
        models.append(tiny())
        fit(models[-1], toy(), replace(config, seed=seed), progress=False)
    assert_same(weights(models[0]), weights(models[1]))
    assert not torch.equal(models[0].score_layer.weight, models[2].score_layer.weight)


class Stop(Exception):
    pass


def stop_after(last: int) -> Any:
    def on_step(step: int, loss: float) -> None:
        if step == last:
            raise Stop

    return on_step


@pytest.mark.parametrize("last", [2, 3, 4])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path: Path, last: int) -> None:
    """5 bags, 2 a step, checkpoints after steps 1 and 3: both lie in the middle of an epoch."""
    config = replace(QUICK, augment="flip", schedule="linear")
    whole = tiny()
    history = fit(whole, toy(), config, out=tmp_path / "whole", progress=False)
    with pytest.raises(Stop):
        fit(tiny(), toy(), config, out=tmp_path / "cut", progress=False, on_step=stop_after(last))
    resumed = tiny(seed=7)  # its own weights play no part
    steps = []
    again = fit(
        resumed,
        toy(),
        config,
        out=tmp_path / "cut",
        resume=True,
        progress=False,
        on_step=lambda step, loss: steps.append(step),
    )
    assert steps == list(range(2 * (last // 2), 6))  # on_step comes before the checkpoint
    assert_same(weights(resumed), weights(whole))
    assert kept(again) == kept(history) == kept(read_metrics(tmp_path / "cut"))
    assert again[-1]["seconds"] >= again[0]["seconds"]


def test_a_learned_rules_parameters_are_trained_and_resumed(tmp_path: Path) -> None:
    config = replace(QUICK, rule="attention(hidden=4)")
    whole, halves = tiny(), tiny()
    fit(whole, toy(), config, out=tmp_path / "whole", progress=False)

    def stop(step: int, loss: float) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(halves, toy(), config, out=tmp_path / "halves", progress=False, on_step=stop)
    halves = tiny()
    fit(halves, toy(), config, out=tmp_path / "halves", progress=False, resume=True)
    assert_same(weights(halves), weights(whole))
    states = [load_file(tmp_path / run / "checkpoint.safetensors") for run in ("whole", "halves")]
    assert_same(states[1], states[0])
    first = find_rule(config.rule).build(3)
    assert isinstance(first, nn.Module)
    assert not torch.equal(states[0]["rule.w"], first.state_dict()["w"])


def test_rules_that_choose_segments_are_given_the_photos_superpixels() -> None:
    model, bags = tiny(), toy(side=32)
    segments = photo_segments(model, np.asarray(bags.bags[1].photo))
    expected = superpixels(np.asarray(bags.bags[1].photo), (8, 8), stride=model.stride, offset=model.offset)
    assert torch.equal(segments, expected)
    assert int(segments.max()) > 3
    config = replace(QUICK, rule="segment-max", max_steps=2)
    assert len(fit(model, bags, config, progress=False)) == 2


def test_segments_of_padding_are_none() -> None:
    model = tiny()
    photos = [np.asarray(toy(side=side).bags[0].photo) for side in (32, 16)]
    examples = [
        Example(name="a", image=normalise(photo), tags=(1, 1, 0), segments=photo_segments(model, photo))
        for photo in photos
    ]
    batch = collate(examples)
    valid = model.valid_mask(batch.sizes, model.map_size(32, 32))
    segments = fit_segments(batch.segments, valid)
    assert (segments[1][~valid[1]] == -1).all()
    assert (segments[1][valid[1]] >= 0).all()


def test_resuming_with_dropout_draws_the_same_units(tmp_path: Path) -> None:
    bags = toy(3, 64)
    config = TrainConfig(max_steps=3, batch_size=2, learning_rate=1e-3, checkpoint_every=1)

    def net() -> FCN:
        return build_fcn("squeezenet1_0", 3)

    whole = net()
    history = fit(whole, bags, config, progress=False)
    with pytest.raises(Stop):
        fit(net(), bags, config, out=tmp_path, progress=False, on_step=stop_after(1))
    torch.manual_seed(123)
    resumed = net()
    again = fit(resumed, bags, config, out=tmp_path, resume=True, progress=False)
    assert_same(weights(resumed), weights(whole))
    assert kept(again) == kept(history)


def test_resuming_survives_a_metrics_line_that_was_cut_short(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        fit(tiny(), toy(), QUICK, out=tmp_path, progress=False, on_step=stop_after(2))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    history = fit(tiny(), toy(), QUICK, out=tmp_path, resume=True, progress=False)
    assert [r["step"] for r in read_metrics(tmp_path)] == [r["step"] for r in history] == list(range(6))


def test_resuming_a_finished_run_trains_no_more(tmp_path: Path) -> None:
    model = tiny()
    history = fit(model, toy(), QUICK, out=tmp_path, progress=False)
    again = tiny(seed=3)
    assert (
        fit(again, toy(), QUICK, out=tmp_path, resume=True, progress=False, on_step=stop_after(5)) == history
    )
    assert_same(weights(again), weights(model))


def test_resuming_with_nothing_there_starts_anew(tmp_path: Path) -> None:
    model, twin = tiny(), tiny()
    fit(model, toy(), QUICK, out=tmp_path / "new", resume=True, progress=False)
    fit(twin, toy(), QUICK, progress=False)
    assert_same(weights(model), weights(twin))


def test_a_new_run_drops_the_checkpoint_of_an_earlier_one(tmp_path: Path) -> None:
    fit(tiny(), toy(), QUICK, out=tmp_path, progress=False)
    with pytest.raises(Stop):
        fit(tiny(seed=5), toy(), QUICK, out=tmp_path, progress=False, on_step=stop_after(0))
    steps: list[int] = []
    fit(
        tiny(seed=5),
        toy(),
        QUICK,
        out=tmp_path,
        resume=True,
        progress=False,
        on_step=lambda s, v: steps.append(s),
    )
    assert steps == list(range(6))


def test_resuming_with_other_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        fit(tiny(), toy(), QUICK, out=tmp_path, progress=False, on_step=stop_after(3))
    with pytest.raises(UserError, match=r"checkpoint\.safetensors.*learning_rate was 0\.01, is 0\.02"):
        fit(tiny(), toy(), replace(QUICK, learning_rate=0.02), out=tmp_path, resume=True, progress=False)


@pytest.mark.parametrize(
    "optimizer", ["sgd(nesterov=true)", "adamw", "adam", "nadam", "radam", "adamax", "rmsprop"]
)
def test_the_whole_state_of_an_optimizer_is_resumed(tmp_path: Path, optimizer: str) -> None:
    config = replace(QUICK, optimizer=optimizer, schedule="cosine", learning_rate=1e-3)
    whole, halves = tiny(), tiny(seed=3)
    history = fit(whole, toy(), config, progress=False)
    with pytest.raises(Stop):
        fit(tiny(), toy(), config, out=tmp_path, progress=False, on_step=stop_after(3))
    assert kept(fit(halves, toy(), config, out=tmp_path, resume=True, progress=False)) == kept(history)
    assert_same(weights(halves), weights(whole))


def test_every_optimizer_and_schedule_trains_otherwise() -> None:
    losses = {
        name: fit(tiny(), toy(), replace(QUICK, optimizer=name, learning_rate=1e-4), progress=False)[-1][
            "loss"
        ]
        for name in OPTIMIZERS
    }
    assert len(set(losses.values())) == len(OPTIMIZERS)
    rates = {
        name: tuple(learning_rate_at(step, replace(QUICK, schedule=name)) for step in range(6))
        for name in SCHEDULES
    }
    assert len(set(rates.values())) == len(SCHEDULES)
    assert all(rate[0] == pytest.approx(1e-2) and min(rate) > 0 for rate in rates.values())


# callbacks


class Listener(Callback):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def on_start(self, step: int) -> None:
        self.told.append(("start", step))

    def on_step(self, record: Any) -> None:
        self.told.append(("step", record["step"]))

    def on_validation(self, step: int, scores: Any) -> None:
        self.told.append(("validation", step, scores["score"]))

    def on_checkpoint(self, step: int, path: Path) -> None:
        self.told.append(("checkpoint", step, path.exists()))

    def on_end(self) -> None:
        self.told.append("end")


def test_callbacks_are_told_of_steps_validations_and_checkpoints(tmp_path: Path) -> None:
    listener = Listener()
    fit(
        tiny(),
        toy(),
        replace(QUICK, max_steps=3),
        out=tmp_path,
        progress=False,
        callbacks=[listener],
        validate=lambda done: {"score": 0.5} if done == 2 else None,
    )
    assert listener.told == [
        ("start", 0),
        ("step", 0),
        ("step", 1),
        ("validation", 2, 0.5),
        ("checkpoint", 2, True),
        ("step", 2),
        ("checkpoint", 3, True),
        "end",
    ]


# what is written


def test_metrics_and_checkpoint(tmp_path: Path) -> None:
    model = tiny()
    history = fit(model, toy(), QUICK, out=tmp_path / "deep" / "run", progress=False)
    assert sorted(p.name for p in (tmp_path / "deep" / "run").iterdir()) == [
        "checkpoint.safetensors",
        "metrics.jsonl",
    ]
    assert read_metrics(tmp_path / "deep" / "run") == history
    assert [sorted(r) for r in history] == [
        ["images_per_second", "learning_rate", "loss", "seconds", "step"]
    ] * 6
    assert [r["step"] for r in history] == list(range(6))
    assert all(r["learning_rate"] == 1e-2 and r["images_per_second"] > 0 for r in history)
    twin = tiny(seed=4)
    optimiser = torch.optim.SGD(parameter_groups(twin, QUICK), lr=1.0, momentum=0.9)
    config = {field: getattr(QUICK, field) for field in QUICK.__dataclass_fields__}
    assert (
        load_state(tmp_path / "deep" / "run" / "checkpoint.safetensors", twin, optimiser, config=config) == 6
    )
    assert_same(weights(twin), weights(model))
    assert not model.training


def test_on_step_is_told_every_step() -> None:
    told: list[tuple[int, float]] = []
    history = fit(tiny(), toy(), QUICK, progress=False, on_step=lambda *record: told.append(record))
    assert told == [(r["step"], r["loss"]) for r in history]


# mistakes


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_the_last_checkpoint_stays(
    tmp_path: Path, bad: float
) -> None:
    calls = 0

    def rule(scores: torch.Tensor, tags: torch.Tensor, valid: torch.Tensor, **given: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return mil_loss(scores, tags, valid) * (bad if calls == 4 else 1.0)

    model = tiny()
    with pytest.raises(UserError, match=rf"the loss became {bad} in step 3; the last checkpoint is kept"):
        fit(model, toy(), QUICK, rule=RuleEntry(rule=rule), out=tmp_path, progress=False)
    assert [r["step"] for r in read_metrics(tmp_path)] == [0, 1, 2]
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    # The run goes on from step 2 once the loss is finite again.
    resumed = fit(tiny(), toy(), QUICK, rule=RuleEntry(rule=rule), out=tmp_path, resume=True, progress=False)
    assert kept(resumed) == kept(fit(tiny(), toy(), QUICK, progress=False))


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    """The loss of the last step is finite, and its update is not."""
    calls = 0

    def rule(scores: torch.Tensor, tags: torch.Tensor, valid: torch.Tensor, **given: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 6:
            scores.register_hook(lambda gradient: gradient * math.inf)
        return mil_loss(scores, tags, valid)

    with pytest.raises(UserError, match="no longer finite; lower the learning rate"):
        fit(tiny(), toy(), QUICK, rule=RuleEntry(rule=rule), out=tmp_path, progress=False)
    model = tiny()
    optimiser = torch.optim.SGD(parameter_groups(model, QUICK), lr=1.0, momentum=0.9)
    config = {field: getattr(QUICK, field) for field in QUICK.__dataclass_fields__}
    assert load_state(tmp_path / "checkpoint.safetensors", model, optimiser, config=config) == 4


def test_training_from_tags_opens_no_mask_and_the_oracle_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **given: Any) -> None:
        raise AssertionError("a mask was opened")

    monkeypatch.setattr(milseg.data.bags, "open_mask", refuse)
    monkeypatch.setattr(milseg.data.bags, "load_mask", refuse)
    bags = toy(mask=tmp_path / "mask.png")
    for rule in ("max", "average", "binary-max"):
        assert len(fit(tiny(), bags, replace(QUICK, rule=rule, max_steps=1), progress=False)) == 1
    with pytest.raises(AssertionError, match="a mask was opened"):
        fit(tiny(), bags, replace(QUICK, rule="oracle", max_steps=1), progress=False)
    with pytest.raises(AssertionError, match="a mask was opened"):
        fit(tiny(), bags, replace(QUICK, mask_weight=1.0, max_steps=1), progress=False)


def test_masks_can_join_a_rule_of_tags_each_with_its_weight() -> None:
    model = tiny()
    batch = load_batch(toy(), [0, 1], with_masks=True)
    rule = batch_loss(model, batch, find_rule("max"), QUICK)
    masks = batch_loss(model, batch, find_rule("oracle"), QUICK)
    config = replace(QUICK, mask_weight=3.0, rule_weight=0.5)
    both = batch_loss(model, batch, find_rule("max"), config)
    assert float(both.detach()) == pytest.approx(
        0.5 * float(rule.detach()) + 3 * float(masks.detach()), rel=1e-6
    )


def test_the_oracle_needs_masks_and_says_which_is_missing() -> None:
    with pytest.raises(UserError, match=r"b\d: has no mask"):
        fit(tiny(), toy(mask=False), replace(QUICK, rule="oracle"), progress=False)


def test_ones_own_rule_from_python() -> None:
    seen = []

    def rule(scores: torch.Tensor, tags: torch.Tensor, valid: torch.Tensor, **given: Any) -> torch.Tensor:
        seen.append((tuple(scores.shape), tuple(tags.shape), tuple(valid.shape), valid.dtype, given))
        return mil_loss(scores, tags, valid)

    model, twin = tiny(), tiny()
    history = fit(model, toy(), replace(QUICK, rule="not read"), rule=RuleEntry(rule=rule), progress=False)
    assert seen == [((2, 3, 4, 4), (2, 3), (2, 4, 4), torch.bool, {})] * 6
    assert kept(history) == kept(fit(twin, toy(), QUICK, progress=False))
    assert_same(weights(model), weights(twin))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda s, t, v, **k: s.mean(), r"a loss of shape \(\); expected one number a bag, \(2,\)"),
        (lambda s, t, v, **k: s.mean(dim=1), r"a loss of shape \(2, 4, 4\)"),
        (lambda s, t, v, **k: 1.0, "a loss of type float"),
    ],
)
def test_a_rule_whose_loss_is_not_one_number_a_bag(wrong: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit(tiny(), toy(), QUICK, rule=RuleEntry(rule=wrong), progress=False)


def test_no_bags_and_unknown_rules() -> None:
    with pytest.raises(UserError, match="toy: no photos to train on"):
        fit(tiny(), toy().take([]), QUICK, progress=False)
    with pytest.raises(UserError, match="did you mean 'oracle'"):
        fit(tiny(), toy(), replace(QUICK, rule="oracel"), progress=False)


def test_a_photo_cut_short_is_named(tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF")
    bags = toy()
    bags = replace(bags, bags=(*bags.bags, replace(bags.bags[0], name="cut", photo=tmp_path / "cut.jpg")))
    with pytest.raises(UserError, match=r"cut\.jpg"):
        fit(tiny(), bags, QUICK, progress=False)


# in pieces, with other sums, and stopped


def test_pieces_of_a_batch_give_what_the_batch_gives(tmp_path: Path) -> None:
    """5 bags of several sizes in 1, 2 or 3 pieces; with dropout, which is drawn for the whole batch."""
    bags = toy(5, 64)
    bags = replace(
        bags,
        bags=tuple(
            replace(b, photo=np.asarray(b.photo)[: 40 + 5 * i], mask=None) for i, b in enumerate(bags.bags)
        ),
    )
    config = TrainConfig(max_steps=2, batch_size=5, learning_rate=1e-3, augment="flip")
    models, losses = [], []
    for pieces in (1, 2, 3):
        models.append(build_fcn("squeezenet1_0", 3, seed=0))
        history = fit(models[-1], bags, replace(config, accumulate=pieces), progress=False)
        losses.append([r["loss"] for r in history])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)
    for model in models[1:]:
        for name, tensor in weights(model).items():
            torch.testing.assert_close(tensor, models[0].state_dict()[name], rtol=1e-4, atol=1e-6, msg=name)
    without = fit(build_fcn("squeezenet1_0", 3, seed=0), bags, replace(config, dropout=False), progress=False)
    assert without[0]["loss"] != pytest.approx(losses[0][0], rel=1e-5)


def test_the_network_sees_a_piece_at_a_time() -> None:
    model, seen = tiny(), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    fit(model, toy(), replace(QUICK, max_steps=1, batch_size=5, accumulate=2), progress=False)
    assert seen == [2, 3]


def test_wide_and_tall_photos_are_not_padded_to_each_other() -> None:
    """Each bag's loss and gradient are those of its aspect group alone; a rule across bags sees all at once."""
    bags = toy(4, 40)
    bags = replace(
        bags,
        bags=tuple(
            replace(b, photo=np.asarray(b.photo)[:24] if i % 2 else np.asarray(b.photo)[:, :28], mask=None)
            for i, b in enumerate(bags.bags)
        ),
    )
    config = replace(QUICK, max_steps=1, batch_size=4, dropout=False)
    model, seen = tiny(), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    [record] = fit(model, bags, config, progress=False)
    assert sorted(seen) == [(2, 3, 24, 40), (2, 3, 40, 28)]
    alone = [
        fit(tiny(), bags.take([i]), replace(config, batch_size=1), progress=False)[0]["loss"]
        for i in range(4)
    ]
    assert record["loss"] == pytest.approx(np.mean(alone), rel=1e-5)
    seen.clear()
    fit(model, bags, replace(config, rule="max+consistency"), progress=False)
    assert seen == [(4, 3, 40, 40)]


def test_live_batch_norm_sees_the_batch_at_once() -> None:
    model, seen = build_fcn("tiny", 3, frozen_batch_norm=False), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    bags = toy(4, 40)
    tall = tuple(
        replace(b, photo=np.asarray(b.photo)[:, : 24 + 8 * i], mask=None) for i, b in enumerate(bags.bags)
    )
    fit(model, replace(bags, bags=tall), replace(QUICK, max_steps=1, batch_size=4), progress=False)
    assert seen == [4]


def test_what_cannot_be_divided_is_refused() -> None:
    config = replace(QUICK, rule="max+consistency", accumulate=2)
    with pytest.raises(UserError, match="--accumulate 2 with a rule that looks across the photos"):
        fit(tiny(), toy(), config, progress=False)
    live = build_fcn("tiny", 3, frozen_batch_norm=False)
    with pytest.raises(UserError, match="batch norm takes the statistics"):
        fit(live, toy(), replace(QUICK, accumulate=2), progress=False)
    assert len(fit(live, toy(), QUICK, progress=False)) == QUICK.max_steps


def test_too_little_memory_halves_the_pieces_and_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    """A device with room for two photos; the result is the whole batch's."""

    class Small(FCN):
        room, seen = 2, []

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.seen.append(len(images))
            if len(images) > self.room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(images)

    whole, small = tiny(), tiny()
    small.__class__ = Small
    config = replace(QUICK, max_steps=2, batch_size=5)
    history = fit(whole, toy(), config, progress=False)
    again = fit(small, toy(), config, progress=False)
    assert Small.seen == [5, 2, 3, 1, 1, 1, 2, 1, 1, 1, 2]
    assert [r["loss"] for r in again] == pytest.approx([r["loss"] for r in history], rel=1e-5)
    for name, tensor in weights(small).items():
        torch.testing.assert_close(tensor, whole.state_dict()[name], rtol=1e-4, atol=1e-6, msg=name)
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(";")[2].split(",")[0] for line in told] == [
        " going on with 3 photos at a time (--accumulate 2)",
        " going on with 2 photos at a time (--accumulate 4)",
    ]
    Small.room = 0
    with pytest.raises(UserError, match="memory is not enough for a photo; give a smaller --longest-side"):
        fit(small, toy(), config, progress=False)
    with pytest.raises(UserError, match="for a batch of 5 photos, which this rule sees together"):
        fit(small, toy(), replace(config, rule="max+consistency"), progress=False)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_other_precisions_compute_the_network_and_no_loss(precision: str) -> None:
    kinds = {"network": set(), "rule": set()}

    def rule(scores: torch.Tensor, tags: torch.Tensor, valid: torch.Tensor, **_: Any) -> torch.Tensor:
        kinds["rule"].add(scores.dtype)
        return mil_loss(scores, tags, valid)

    model, exact = tiny(), tiny()
    model.score_layer.register_forward_hook(lambda *given: kinds["network"].add(given[2].dtype))
    config = replace(QUICK, max_steps=3, precision=precision)
    history = fit(model, toy(), config, rule=RuleEntry(rule=rule), progress=False)
    expected = fit(exact, toy(), replace(config, precision="float32"), progress=False)
    assert kinds == {"network": {getattr(torch, precision)}, "rule": {torch.float32}}
    found, wanted = ([r["loss"] for r in records] for records in (history, expected))
    assert found != wanted
    assert found == pytest.approx(wanted, rel=0.02)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_float16_goes_on_with_the_scale_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scale that grows every second step."""

    def scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2, enabled=precision == "float16")

    monkeypatch.setattr(milseg.training.trainer, "loss_scaler", scaler)
    config = replace(QUICK, precision="float16", checkpoint_every=1, max_gradient=1.0)
    whole, halves = tiny(), tiny()
    fit(whole, toy(), config, out=tmp_path / "whole", progress=False)
    with pytest.raises(Stop):
        fit(halves, toy(), config, out=tmp_path / "halves", progress=False, on_step=stop_after(2))
    fit(halves, toy(), config, out=tmp_path / "halves", progress=False, resume=True)
    assert_same(weights(halves), weights(whole))
    scales = []
    for run in ("whole", "halves"):
        with safe_open(tmp_path / run / "checkpoint.safetensors", framework="pt") as file:
            scales.append(json.loads(file.metadata()["scaler"])["scale"])
    assert scales == [64.0, 64.0]


def test_compile_trains_what_torch_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[int] = []

    def fake(model: FCN, *, dynamic: bool) -> Any:
        assert dynamic

        def network(images: torch.Tensor) -> torch.Tensor:
            compiled.append(len(images))
            return model(images)

        return network

    monkeypatch.setattr(torch, "compile", fake)
    plain, model = tiny(), tiny()
    fit(plain, toy(), QUICK, progress=False)
    assert not compiled
    fit(model, toy(), replace(QUICK, compile=True), progress=False)
    assert compiled == [2] * 6
    assert_same(weights(model), weights(plain))


def test_compile_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match=r"--compile: needs a C\+\+ compiler"):
        fit(tiny(), toy(), replace(QUICK, compile=True), progress=False)


@pytest.mark.slow
def test_a_compiled_network_learns_the_same() -> None:
    plain, model = pointwise(), pointwise()
    expected = fit(plain, toy(), QUICK, progress=False)
    found = fit(model, toy(), replace(QUICK, compile=True), progress=False)
    assert [r["loss"] for r in found] == pytest.approx([r["loss"] for r in expected], rel=1e-4)
    assert weights(model).keys() == weights(plain).keys()


def test_what_changes_rounding_alone_may_change_on_the_way(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        fit(tiny(), toy(), QUICK, out=tmp_path, progress=False, on_step=stop_after(3))
    again = replace(QUICK, accumulate=2)
    history = fit(tiny(), toy(), again, out=tmp_path, progress=False, resume=True)
    assert [r["step"] for r in history] == list(range(6))
    with pytest.raises(UserError, match="precision was 'float32', is 'bfloat16'"):
        fit(tiny(), toy(), replace(QUICK, precision="bfloat16"), out=tmp_path, resume=True, progress=False)


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_a_signal_stops_after_its_step_with_a_checkpoint(tmp_path: Path, number: int) -> None:
    whole, halves = tiny(), tiny()
    fit(whole, toy(), QUICK, out=tmp_path / "whole", progress=False)

    def ask(step: int, loss: float) -> None:
        if step == 2:
            signal.raise_signal(number)
            signal.raise_signal(number)  # a second one changes nothing

    before = [signal.getsignal(n) for n in preemption.SIGNALS]
    told = r"stopped by a signal after 3 of 6 steps; they are in .*--resume goes on"
    with pytest.raises(preemption.Stopped, match=told), preemption.heeding():
        fit(halves, toy(), QUICK, out=tmp_path / "halves", progress=False, on_step=ask)
    assert [signal.getsignal(n) for n in preemption.SIGNALS] == before
    steps: list[int] = []
    fit(
        halves,
        toy(),
        QUICK,
        out=tmp_path / "halves",
        progress=False,
        resume=True,
        on_step=lambda step, _: steps.append(step),
    )
    assert steps == [3, 4, 5]
    assert_same(weights(halves), weights(whole))


def test_a_signal_outside_of_training_stops_at_once() -> None:
    with pytest.raises(preemption.Stopped, match="stopped by SIGTERM between steps"), preemption.heeding():
        signal.raise_signal(signal.SIGTERM)
    with preemption.heeding():
        assert not preemption.asked()
