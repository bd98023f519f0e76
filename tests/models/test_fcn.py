"""The cast networks: exact against torchvision's classifiers, in their geometry, at any size."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from milseg.errors import UserError
from milseg.models.backbone_table import BACKBONES
from milseg.models.backbones import build_fcn, cast_classifier, make_classifier
from milseg.models.fcn import FCN, DensePool, Layer, map_length

CLASSES = 11
# VGG-16 is the paper's: with all 1000 logits.
ROWS = {name: 1000 if name == "vgg16" else CLASSES for name in BACKBONES}
EVERY = [(name, stride) for name, row in BACKBONES.items() for stride in row.strides]
# Pixels from the centre of pixel 0 to that of place 0, worked by hand.
OFFSETS = {
    "vgg16": 0.5 * (1 + 2 + 4 + 8 + 16),  # five 2x2 pools; everything else is centred
    "squeezenet1_0": 3 + 1 * 2 + 1 * 4 + 1 * 8,  # an unpadded 7x7, three unpadded 3x3 pools
    "mobilenet_v2": 0.0,
    "resnet18": 0.0,
    "resnet50": 0.0,
    "convnext_tiny": 1.5 + 0.5 * (4 + 8 + 16),  # an unpadded 4x4, three unpadded 2x2
    "tiny": 0.0,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """On cores that others use too, two threads wait for each other longer than they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def randomised(network: nn.Module) -> nn.Module:
    """Biases, batch norm and layer scale that do something, unlike fresh ones, and a signal that lives.

    Without batch statistics that fit, a random MobileNet gives every photo the same logits.
    """
    generator = torch.Generator().manual_seed(1)

    def noise(like: torch.Tensor, scale: float) -> torch.Tensor:
        return scale * torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith("layer_scale"):
                value.copy_(0.3 + noise(value, 0.1))
            elif value.is_floating_point() and value.ndim == 1 and "running" not in name:
                value.add_(noise(value, 0.1))
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        if norms:
            for norm in norms:
                norm.momentum = 1.0
            network.train()(torch.randn(4, 3, 64, 64, generator=generator))
    return network.eval()


@pytest.fixture(scope="module")
def classifiers() -> dict[str, nn.Module]:
    """Each classifier once: VGG-16 takes seconds to make."""
    return {name: randomised(make_classifier(name, ROWS[name], seed=3)) for name in BACKBONES}


@pytest.fixture(scope="module")
def cast(classifiers):
    """Cast a classifier without touching it: the network is copied, its weights are shared."""

    def make(name: str, stride: int | None = None, padding: str = "same") -> FCN:
        with torch.device("meta"):
            network = BACKBONES[name].make(ROWS[name])
        network.load_state_dict(classifiers[name].state_dict(), assign=True)
        return cast_classifier(name, network, output_stride=stride, vgg_padding=padding).eval()

    return make


def photo(height: int, width: int, *, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to 1e-4 of the largest value."""
    assert found.shape == expected.shape
    scale = float(expected.abs().max())
    assert scale > 1e-3
    assert float((found - expected).abs().max()) <= 1e-4 * scale


# Exactness


@torch.no_grad()
def test_vgg16_unpadded_gives_the_classifiers_logits(classifiers, cast):
    images = photo(224, 224)
    scores = cast("vgg16", padding="valid")(images)
    assert scores.shape == (1, 1000, 1, 1)
    assert_same(scores[..., 0, 0], classifiers["vgg16"](images))


@torch.no_grad()
def test_vgg16_head_is_the_classifiers_on_each_window_of_pool5(classifiers, cast):
    images = photo(256, 288)
    model = cast("vgg16", padding="valid")
    pool5 = model.body(images)
    assert_same(pool5, classifiers["vgg16"].features(images))
    scores = model(images)
    assert scores.shape == (1, 1000, 2, 3)
    for i in range(2):
        for j in range(3):
            window = pool5[:, :, i : i + 7, j : j + 7].flatten(1)
            assert_same(scores[..., i, j], classifiers["vgg16"].classifier(window))


@torch.no_grad()
def test_vgg16_paddings_agree_inside(cast):
    """ "same" is "valid" with three more places on each side; the inner ones see the same 7x7 windows."""
    images = photo(256, 256)
    assert_same(cast("vgg16")(images)[..., 3:-3, 3:-3], cast("vgg16", padding="valid")(images))


@torch.no_grad()
def test_pad100_is_the_first_convolution_padded_by_100(classifiers, cast):
    images = photo(20, 33)
    model = cast("vgg16", padding="pad100")
    features = copy.copy(classifiers["vgg16"].features)
    first = F.conv2d(images, features[0].weight, features[0].bias, padding=100)
    x = features[1](first)
    for layer in list(features)[2:]:
        x = F.max_pool2d(x, 2, ceil_mode=True) if isinstance(layer, nn.MaxPool2d) else layer(x)
    head = F.conv2d(x, model.head[0].weight, model.head[0].bias)
    assert_same(model(images), model.score_layer(model.head[1:](head)))


@pytest.mark.parametrize(("name", "stride"), EVERY)
@torch.no_grad()
def test_classify_is_torchvisions_classifier(classifiers, cast, name, stride):
    images = photo(96, 128, batch=2)
    images[1] = 1 + 2 * images[1]
    logits = classifiers[name](images)
    assert float(logits.std(0).max()) > 1e-2 * float(logits.abs().max()), (
        "the two photos must differ for this to show anything"
    )
    assert_same(cast(name, stride).classify(images), logits)


@torch.no_grad()
def test_classify_ignores_the_padding_of_fc6(classifiers, cast):
    images = photo(64, 64)
    for padding in ("pad100", "valid"):
        assert_same(cast("vgg16", padding=padding).classify(images), classifiers["vgg16"](images))


@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "vgg16"])
@torch.no_grad()
def test_head_is_the_classifiers_on_each_window(classifiers, cast, name):
    """The classifier's own layers on a 7x7 window of the map (1x1 for ConvNeXt: its norm is not linear)."""
    model, network = cast(name), classifiers[name]
    size = 1 if name == "convnext_tiny" else 7
    images = photo(8 * model.stride + 40, 9 * model.stride + 40)
    features, scores = model.body(images), model(images)
    windows = 0
    for i in range(0, features.shape[2] - size + 1, 2):
        for j in range(0, features.shape[3] - size + 1, 2):
            window = features[:, :, i : i + size, j : j + size]
            found = scores[:, :, i : i + size, j : j + size]
            if name == "squeezenet1_0":
                expected, found = network.classifier(window).flatten(1), F.relu(found)
            elif name == "convnext_tiny":
                expected = network.classifier(window)
            elif name in ("resnet18", "resnet50"):
                expected = network.fc(window.mean((2, 3)))
            else:
                expected = network.classifier(window.mean((2, 3)))
            assert_same(found.mean((2, 3)), expected)
            windows += 1
    assert windows >= 2


@torch.no_grad()
def test_scores_are_linear_below_zero(cast):
    assert float(cast("squeezenet1_0")(photo(64, 64)).min()) < 0


# Dilation


@pytest.mark.parametrize(("name", "stride"), [(n, s) for n, s in EVERY if s != BACKBONES[n].strides[0]])
@pytest.mark.parametrize("size", [(65, 97), (96, 64)])
@torch.no_grad()
def test_dilation_keeps_the_old_places(cast, name, stride, size):
    """Every place of the strided network, borders included, and new ones between."""
    images = photo(*size)
    step = BACKBONES[name].strides[0] // stride
    assert_same(cast(name, stride)(images)[..., ::step, ::step], cast(name)(images))


@torch.no_grad()
def test_dense_pool_by_hand():
    row = torch.tensor([3.0, 1.0, 2.0, -5.0, -4.0]).expand(1, 1, 5, 5)
    assert DensePool(2, dilation=1, extra=1)(row)[0, 0, 0].tolist() == [3, 2, 2, -4, -4]
    assert DensePool(2, dilation=2, extra=2)(row)[0, 0, 0].tolist() == [3, 1, 2, -5, -4]


# Geometry


@pytest.mark.parametrize(("name", "stride"), EVERY)
def test_offsets_worked_by_hand(cast, name, stride):
    model = cast(name, stride)
    assert (model.stride, model.offset, model.native_stride) == (
        stride,
        OFFSETS[name],
        BACKBONES[name].strides[0],
    )


def test_vgg_offsets_worked_by_hand(cast):
    # The FCN authors cut 19 pixels off a map upsampled by a 64-pixel kernel: 31.5, its first centre, moves.
    assert cast("vgg16", padding="pad100").offset == 31.5 - 19
    assert cast("vgg16", 16, "pad100").offset == 12.5
    assert cast("vgg16", padding="valid").offset == (224 - 1) / 2


@pytest.mark.parametrize(("name", "stride"), EVERY)
@torch.no_grad()
def test_places_see_the_pixels_around_their_centre(cast, name, stride):
    """A NaN in one row of pixels reaches exactly the places whose field, centred as stated, holds it."""
    model = cast(name, stride)
    height, width = model.field + 6 * model.native_stride, max(8, model.minimum)
    rows = [height // 2 + k for k in (0, 1, stride // 2)]
    for axis in (2, 3) if name == "tiny" else (2,):
        images = torch.zeros(len(rows), 3, height, width)
        for image, row in zip(images, rows, strict=True):
            image[:, row] = float("nan")
        scores = model(images if axis == 2 else images.transpose(2, 3))
        reached = scores.isnan().any(1).any(5 - axis - 1)
        centres = model.offset + stride * torch.arange(reached.shape[1])
        expected = (centres[None] - torch.tensor(rows)[:, None]).abs() <= (model.field - 1) / 2
        assert expected.any(1).all()
        assert not expected[:, 0].any(), "the run of places must end inside the map to show where it ends"
        assert not expected[:, -1].any()
        assert torch.equal(reached, expected)


# Sizes

SIZES = [(1, 1), (1, 7), (7, 1), (6, 6), (20, 21), (33, 65), (31, 64), (70, 45)]


@pytest.mark.parametrize(("name", "stride"), EVERY)
@torch.no_grad()
def test_any_size(cast, name, stride):
    model = cast(name, stride)
    for height, width in SIZES if name != "vgg16" else SIZES[::3]:
        scores = model(photo(height, width))
        assert scores.shape == (1, ROWS[name], *model.map_size(height, width))
        assert bool(scores.isfinite().all())
        mask = model.valid_mask(torch.tensor([[height, width]]), scores.shape[-2:])
        assert mask.dtype == torch.bool
        assert mask.shape == (1, *scores.shape[-2:])
        for length, places in ((height, mask[0, :, 0]), (width, mask[0, 0])):
            centres = [int(model.offset + stride * i) for i in range(len(places))]
            assert places.tolist() == [i == 0 or centre < length for i, centre in enumerate(centres)]
        assert bool(model.classify(photo(height, width)).isfinite().all())


@pytest.mark.parametrize("padding", ["pad100", "valid"])
@torch.no_grad()
def test_any_size_vgg_paddings(cast, padding):
    model = cast("vgg16", padding=padding)
    assert model.minimum == {"pad100": 1, "valid": 193}[padding]
    for size in ((1, 1), (33, 7)):
        assert model(photo(*size)).shape == (1, model.classes, *model.map_size(*size))
    assert model.map_size(1, 1) == (1, 1)


@torch.no_grad()
def test_small_photos_are_padded_with_zeros(cast):
    model = cast("convnext_tiny")
    assert model.minimum == 32
    small = photo(9, 40)
    assert torch.equal(model(small), model(F.pad(small, (0, 0, 0, 23))))


def test_map_length_is_what_torch_does():
    for kernel in (1, 2, 3, 7):
        for stride in (1, 2, 4):
            for padding in range(kernel // 2 + 1):
                for ceil in (False, True):
                    pool = nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil)
                    for n in range(max(1, kernel - 2 * padding), 20):
                        found = map_length([Layer(kernel, stride, padding, 1, ceil, 0)], n)
                        assert found == pool(torch.zeros(1, 1, n, n)).shape[-1], (
                            kernel,
                            stride,
                            padding,
                            ceil,
                            n,
                        )


def test_valid_mask_by_hand(cast):
    model = cast("tiny")  # centres at 0, 4, 8
    mask = model.valid_mask(torch.tensor([[9, 4], [8, 5], [4, 1]]), (3, 2))
    assert mask[:, :, 0].tolist() == [[True] * 3, [True, True, False], [True, False, False]]
    assert mask[:, 0].tolist() == [[True, False], [True, True], [True, False]]
    assert not mask[2, 1:].any()


@torch.no_grad()
def test_places_away_from_the_padding_do_not_see_it(cast):
    """In a padded batch, places whose field lies in their photo score as they do alone."""
    model = cast("tiny", 4)
    alone = photo(64, 80)
    batch = torch.zeros(2, 3, 96, 128)
    batch[0, :, :64, :80] = alone
    batch[1] = photo(96, 128, seed=1)
    inner = [
        sum(model.offset + model.stride * i + (model.field - 1) / 2 < n for i in range(n // 4))
        for n in (64, 80)
    ]
    assert inner == [8, 12]
    there, here = model(batch)[:1, :, : inner[0], : inner[1]], model(alone)[..., : inner[0], : inner[1]]
    assert_same(there, here)


# The module


def test_batch_norm_is_frozen_by_default():
    model = build_fcn("resnet18", 3)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    for _ in range(2):
        assert not any(norm.training for norm in norms)
        before = norms[0].running_mean.clone()
        model(photo(33, 33, batch=2))
        assert torch.equal(norms[0].running_mean, before)
        assert all(norm.weight.requires_grad for norm in norms)
        model.eval()
        assert not model.training
        model.train()
    model.frozen_batch_norm = False
    assert all(m.training for m in model.train().modules())


def test_dropout_follows_train():
    model = build_fcn("squeezenet1_0", 3)
    assert model.head[0].training
    assert not model.eval().head[0].training


def test_gradients_reach_the_first_layer(cast):
    model = build_fcn("tiny", 3, output_stride=4)
    model(photo(16, 16)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    assert float(model.body[0].weight.grad.abs().max()) > 0


def test_score_layer_can_be_replaced():
    model = build_fcn("tiny", 10).double()
    model.replace_score_layer(3)
    assert model.classes == 3
    assert not model.score_layer.weight.any()
    assert model(photo(9, 9).double()).shape == (1, 3, 3, 3)
    generator = torch.Generator().manual_seed(0)
    model.replace_score_layer(50, std=0.02, generator=generator)
    assert float(model.score_layer.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert not model.score_layer.bias.any()
    weight, bias = torch.arange(192.0).reshape(2, 96), torch.tensor([5.0, 6.0])
    model.set_rows(weight, bias)
    weight.zero_()
    assert model.score_layer.weight[1, 0].item() == 96
    assert model.score_layer.bias.tolist() == [5, 6]


def test_tiny_is_small_and_seeded():
    model = build_fcn("tiny", 10, seed=5)
    assert sum(p.numel() for p in model.parameters()) < 250_000
    state = torch.random.get_rng_state()
    again, other = build_fcn("tiny", 10, seed=5), build_fcn("tiny", 10, seed=6)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(model.body[0].weight, again.body[0].weight)
    assert not torch.equal(model.body[0].weight, other.body[0].weight)


# Mistakes


def test_unknown_backbone_lists_the_known():
    with pytest.raises(
        UserError, match=r"unknown backbone 'resnet81'; did you mean 'resnet18'\? Known: .*tiny.*vgg16"
    ):
        build_fcn("resnet81", 3)


@pytest.mark.parametrize(("name", "stride", "has"), [("squeezenet1_0", 32, "16, 8"), ("tiny", 16, "4, 2")])
def test_impossible_stride_lists_the_possible(name, stride, has):
    with pytest.raises(UserError, match=f"{name} has no output stride {stride}; choose one of {has}"):
        build_fcn(name, 3, output_stride=stride)


def test_vgg_padding_mistakes():
    with pytest.raises(UserError, match="squeezenet1_0 has no fc6"):
        build_fcn("squeezenet1_0", 3, vgg_padding="pad100")
    with pytest.raises(UserError, match="unknown VGG padding 'sane'; did you mean 'same'"):
        build_fcn("tiny", 3, vgg_padding="sane")
