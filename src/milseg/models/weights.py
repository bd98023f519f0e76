"""Where a classifier's weights come from: torchvision's download, a local file, or a random start."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from milseg.errors import UserError
from milseg.models.backbone_table import Backbone, backbone_row
from milseg.models.backbones import make_classifier
from milseg.utils.files import did_you_mean
from milseg.utils.watch import watched

SUFFIXES = (".safetensors", ".pth", ".pt")
DOWNLOAD_TIMEOUT = 30.0  # seconds without a byte


def imagenet_categories() -> tuple[str, ...]:
    """The 1000 ILSVRC category names in torchvision's order."""
    return tuple(backbone_row("resnet18").weights.meta["categories"])


def load_classifier(
    backbone: str,
    weights: str | Path | None,
    *,
    categories: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[nn.Module, tuple[str, ...]]:
    """A classifier with its weights, in evaluation mode, and what its rows stand for.

    Args:
        backbone: a name in `BACKBONES`.
        weights: "imagenet" for torchvision's published ones (downloaded once); a `.safetensors`, `.pth` or
            `.pt` file in torchvision's layout; None for a random start.
        categories: what the rows of the last layer stand for; None means ILSVRC's 1000 for a file, and
            nothing for a random start, whose rows mean nothing.
        seed: of the random start.

    Returns:
        The network, float32 on the CPU, and the categories of its rows (empty for a random start without
        any).

    Raises:
        UserError: a download that failed, or a file that is missing, damaged, of another network, or not in
            torchvision's layout. Nothing is ever loaded in part, and no code in a file is run.
    """
    row = backbone_row(backbone)
    if weights is None:
        names = tuple(categories or ())
        return make_classifier(backbone, len(names) or 1000, seed=seed).eval(), names
    names = imagenet_categories() if categories is None else tuple(categories)
    if str(weights) == "imagenet":
        source, state = f"{backbone} from torchvision", _download(backbone, row)
    else:
        source, state = str(weights), read_state(Path(weights))
    return _filled(backbone, row, state, len(names), source), names


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """torchvision's download takes no timeout: without one, a dead connection would hang for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _download(backbone: str, row: Backbone) -> dict[str, torch.Tensor]:
    if row.weights is None:
        raise UserError(f"{backbone} has no published ImageNet weights; give a file, or no weights at all")
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: the cache of downloaded weights cannot be written ({error.strerror}); set TORCH_HOME to "
            "another folder, or give a local file"
        ) from None
    try:
        with _timeout(DOWNLOAD_TIMEOUT):
            state: dict[str, torch.Tensor] = watched(
                lambda: row.weights.get_state_dict(progress=False, check_hash=True),
                lambda: sum(path.stat().st_size for path in folder.glob("*.partial")),
            )
    except Exception as error:  # the connection, the server, the disk and the hash check each raise their own
        raise UserError(
            f"could not download the ImageNet weights of {backbone} ({type(error).__name__}: {error}); give "
            "a local .safetensors or .pth file in torchvision's layout instead, such as a copy of "
            f"{row.weights.url}"
        ) from None
    return state


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name from a `.safetensors`, `.pth` or `.pt` file; pickled code in it is refused, not run.

    Raises:
        UserError: missing, of another type, damaged, or more than a plain table of tensors.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(
            f"--weights {path}: weights must be 'imagenet' or a file that ends in {', '.join(SUFFIXES)}"
        )
    if not path.is_file():
        raise UserError(f"--weights {path}: no such weights file{did_you_mean(Path(path))}")
    try:
        if suffix == ".safetensors":
            state = load_file(path)
        else:
            with warnings.catch_warnings():  # torch's about odd files: ours says what to do
                warnings.simplefilter("ignore")
                state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, EOFError) as error:
        raise UserError(f"{path}: damaged or cut short ({_first_line(error)}); copy it again") from None
    except Exception as error:  # on hostile bytes the unpickler raises nearly anything
        raise UserError(
            f"{path}: not a plain table of tensors, damaged or cut short ({_first_line(error)}); save the "
            "network's state_dict() again, best as .safetensors"
        ) from None
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    ):
        found = f"a {type(state).__name__}"
        if isinstance(state, Mapping):
            found += f" with {', '.join(map(repr, list(state)[:4]))}"
        raise UserError(f"{path}: holds {found}; expected a state dict, tensors by name, and nothing else")
    return dict(state)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__


def _filled(
    backbone: str, row: Backbone, state: dict[str, torch.Tensor], classes: int, source: str
) -> nn.Module:
    """The classifier with these tensors as its weights, each checked."""
    with torch.device("meta"):  # shapes only: the weights come from the file
        network = row.make(classes)
    expected = network.state_dict()
    for name, value in expected.items():
        if name.endswith("num_batches_tracked"):
            # A counter that older files lack, and that plays no part.
            state[name] = torch.zeros((), dtype=value.dtype)
    _check_layout(backbone, row, state, expected, source)
    for name, value in state.items():
        if not bool(torch.isfinite(value).all()):
            raise UserError(f"{source}: {name} holds values that are not finite; the file is damaged")
        if value.is_floating_point():
            state[name] = value.to(torch.float32).contiguous()
    network.load_state_dict(state, assign=True)
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return network.eval()


def _check_layout(
    backbone: str,
    row: Backbone,
    state: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    source: str,
) -> None:
    """Raise a UserError unless names, shapes and types are those of torchvision's network."""
    score = f"{row.score}.weight"
    if score in state and state[score].shape[1:] == expected[score].shape[1:]:
        found, wanted = state[score].shape[0], expected[score].shape[0]
        if found != wanted:
            raise UserError(
                f"{source}: a classifier of {found} classes where {wanted} were expected; name the "
                "categories of its rows, in order"
            )
    missing = sorted(set(expected) - set(state))
    extra = sorted(set(state) - set(expected))
    wrong = sorted(name for name in set(state) & set(expected) if state[name].shape != expected[name].shape)
    odd = sorted(
        name
        for name in set(state) & set(expected)
        if state[name].layout != torch.strided
        or state[name].device.type != "cpu"
        or state[name].is_floating_point() != expected[name].is_floating_point()
    )
    problems = []
    if missing:
        problems.append(f"{len(missing)} tensors are missing ({missing[0]}, ...)")
    if extra:
        problems.append(f"{len(extra)} do not belong to it ({extra[0]}, ...)")
    if wrong:
        shapes = f"{list(state[wrong[0]].shape)} instead of {list(expected[wrong[0]].shape)}"
        problems.append(f"{len(wrong)} have another shape ({wrong[0]}: {shapes}, ...)")
    if odd:
        problems.append(f"{len(odd)} are not plain floating-point tensors ({odd[0]}, ...)")
    if problems:
        raise UserError(
            f"{source}: not a {backbone} in torchvision's layout, which has {len(expected)} tensors: "
            f"{'; '.join(problems)}. Choose the backbone that the file belongs to, "
            "or save it from torchvision's network"
        )
