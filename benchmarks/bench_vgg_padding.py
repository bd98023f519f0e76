"""VGG-16 as FCN with its padding in fc6, against the original's 100 pixels around the photo; 1.6 times is wanted.

    python benchmarks/bench_vgg_padding.py [--quick]

The same random weights in both, forward on one photo of 375 x 500 with every processor, both as prediction computes
(`milseg.models.fuse`: fc6's weights, 0.4 GB, are laid out once and not for every photo); each side has channels first
or last, whichever a trial shows to be quicker. Checked first: both maps have a place within half a stride of the
photo's edges or beyond them, so that nothing of the photo is extrapolated further than that, and all their scores are
finite.

Also prints multiply-adds of both by layer shapes, and the arithmetic of training the padded-in-fc6 network in bfloat16
(operations, bytes, operations a byte) for docs/benchmarks.md, which claims no time on a GPU. One JSON line last.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable

import torch
from common import HEIGHT, WIDTH, in_turn, load, made_photo, median_wall, ratios, timed
from torch import nn

from milseg.data.image import normalise
from milseg.models.backbones import build_fcn
from milseg.models.fcn import FCN
from milseg.models.fuse import fused
from milseg.utils.devices import keep_freed_memory
from milseg.utils.parallel import processors

CLASSES = 21
BYTES = 2  # of a bfloat16 number
WANTED = 1.6


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(processors())
    networks = {
        padding: build_fcn("vgg16", CLASSES, vgg_padding=padding).eval() for padding in ("same", "pad100")
    }
    networks["pad100"].load_state_dict(networks["same"].state_dict(), assign=True)
    image = normalise(made_photo(0))[None]
    for padding, network in networks.items():
        check_whole(padding, network, image)

    quick = {name: fused(network) for name, network in networks.items()}
    layouts = {name: quicker_layout(network, image) for name, network in quick.items()}
    sides = {name: forward(network, image, layouts[name]) for name, network in quick.items()}
    times = in_turn(sides, 3 if options.quick else options.rounds)
    wall, processor = ratios(times["pad100"], times["same"])
    operations = {name: multiply_adds(network, HEIGHT, WIDTH) for name, network in networks.items()}
    for name in networks:
        print(
            f"{name}: {median_wall(times[name]):.3f} s a photo ({layouts[name]}), "
            f"{operations[name] / 1e9:.1f} G multiply-adds"
        )
    print(
        f"ratio {wall:.2f} on the wall, {processor:.2f} by processor time, "
        f"{operations['pad100'] / operations['same']:.2f} by multiply-adds (median of {len(times['same'])} pairs; "
        f"wanted: at least {WANTED}); load {load()}"
    )
    training = training_arithmetic(networks["same"], HEIGHT, WIDTH)
    for what, value in training.items():
        print(f"  training in bfloat16, {what}: {value:.4g}")
    print(
        json.dumps(
            {
                "benchmark": "vgg_padding",
                "ratio": round(wall, 3),
                "ratio_processor": round(processor, 3),
                "same_s": median_wall(times["same"]),
                "pad100_s": median_wall(times["pad100"]),
                "multiply_adds": operations,
                "training": training,
                "load": load(),
            }
        )
    )


@torch.inference_mode()
def check_whole(padding: str, network: FCN, image: torch.Tensor) -> None:
    """The places reach the photo's edges."""
    scores = network(image)
    assert scores.isfinite().all()
    for pixels, places in zip(image.shape[2:], scores.shape[2:], strict=True):
        first, last = network.offset, network.offset + (places - 1) * network.stride
        assert first <= network.stride / 2, f"{padding}: place 0 lies at pixel {first}"
        assert last >= pixels - 1 - network.stride / 2, (
            f"{padding}: the last place of {pixels} lies at {last}"
        )
    print(f"{padding}: {scores.shape[2]} x {scores.shape[3]} places, from pixel {network.offset} on")


def forward(network: FCN, image: torch.Tensor, layout: str) -> Callable[[], object]:
    memory: torch.memory_format = getattr(torch, layout)
    seen = image.contiguous(memory_format=memory)

    @torch.inference_mode()
    def run() -> torch.Tensor:
        scores: torch.Tensor = network(seen)
        return scores

    return run


def quicker_layout(network: FCN, image: torch.Tensor) -> str:
    """Channels first or last, by one pass of each; the network is left in that layout."""
    seconds = {}
    for layout in ("contiguous_format", "channels_last"):
        network.to(memory_format=getattr(torch, layout))
        seconds[layout] = timed(forward(network, image, layout)).processor
    best = min(seconds, key=lambda layout: seconds[layout])
    network.to(memory_format=getattr(torch, best))
    return best


def layer_shapes(network: FCN, height: int, width: int) -> list[tuple[nn.Conv2d, torch.Size, torch.Size]]:
    """Each convolution with the shapes of its input and output for one photo; nothing is computed."""
    found: list[tuple[nn.Conv2d, torch.Size, torch.Size]] = []

    def note(layer: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        found.append((layer, inputs[0].shape, output.shape))

    shapes = copy.deepcopy(network).to("meta")
    for layer in shapes.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(note)
    with torch.no_grad():
        shapes(torch.empty(1, 3, height, width, device="meta"))
    return found


def multiply_adds(network: FCN, height: int, width: int) -> int:
    """Of all convolutions for one photo."""
    return sum(
        layer.weight[0].numel() * output.numel() for layer, _, output in layer_shapes(network, height, width)
    )


def training_arithmetic(network: FCN, height: int, width: int, batch: int = 20) -> dict[str, float]:
    """Operations and bytes of training with a batch, one photo's share, from the layers' shapes.

    A multiply-add is two operations. Backward takes the forward pass's again for the weights' gradient and again for
    the inputs', which the first layer does not need. Bytes are the least there can be where nothing stays in a cache:
    each convolution reads its input and writes its output (its ReLU fused into it) in the forward pass, reads both
    and the output's gradient and writes the input's in the backward pass, all in bfloat16; weights are read twice and
    their gradients written once in bfloat16 a batch, and SGD reads and writes weight and momentum in float32.
    """
    layers = layer_shapes(network, height, width)
    forward = 2.0 * multiply_adds(network, height, width)
    first, _, made = layers[0]
    backward = 2 * forward - 2.0 * first.weight[0].numel() * made.numel()
    maps = sum(before.numel() + after.numel() for _, before, after in layers)
    weights = sum(parameter.numel() for parameter in network.parameters())
    moved = 3.0 * BYTES * maps + weights * (3 * BYTES + BYTES + 4 * 4) / batch
    return {
        "batch": batch,
        "forward_gflop": forward / 1e9,
        "backward_gflop": backward / 1e9,
        "weights_million": weights / 1e6,
        "moved_gb": moved / 1e9,
        "flop_per_byte": (forward + backward) / moved,
    }


if __name__ == "__main__":
    main()
