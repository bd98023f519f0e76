"""milseg: pixel masks from photos with tags.

Fully convolutional multi-class multiple instance learning, after the paper of that name. The names below are
loaded when they are first used, so that `import milseg` stays light.

    import milseg

    train = milseg.read_voc(root, "train")
    model, _ = milseg.build_model("mobilenet_v2", train.classes, weights="imagenet")
    milseg.fit(model, train, milseg.TrainConfig(max_steps=500))
    mask = milseg.segment(model, photo)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from milseg._version import __version__

if TYPE_CHECKING:
    from milseg.config import TrainConfig
    from milseg.data.bags import Bag, BagSet
    from milseg.data.image import open_photo
    from milseg.data.sources.digits import read_digits
    from milseg.data.sources.open import open_source
    from milseg.data.sources.voc import read_voc
    from milseg.errors import UserError
    from milseg.evaluation.evaluate import evaluate_model
    from milseg.inference.model_folder import ModelSpec, load_model, save_model
    from milseg.inference.segmenter import Segmenter, load, segment
    from milseg.models.transfer import build_model
    from milseg.rules.choosing import mil_loss
    from milseg.rules.entry import RuleEntry
    from milseg.training.trainer import fit

__all__ = [
    "Bag",
    "BagSet",
    "ModelSpec",
    "RuleEntry",
    "Segmenter",
    "TrainConfig",
    "UserError",
    "__version__",
    "build_model",
    "evaluate_model",
    "fit",
    "load",
    "load_model",
    "mil_loss",
    "open_photo",
    "open_source",
    "read_digits",
    "read_voc",
    "save_model",
    "segment",
]

# Where each name is defined.
_HOMES = {
    "Bag": "data.bags",
    "BagSet": "data.bags",
    "ModelSpec": "inference.model_folder",
    "RuleEntry": "rules.entry",
    "Segmenter": "inference.segmenter",
    "TrainConfig": "config",
    "UserError": "errors",
    "build_model": "models.transfer",
    "evaluate_model": "evaluation.evaluate",
    "fit": "training.trainer",
    "load": "inference.segmenter",
    "load_model": "inference.model_folder",
    "mil_loss": "rules.choosing",
    "open_photo": "data.image",
    "open_source": "data.sources.open",
    "read_digits": "data.sources.digits",
    "read_voc": "data.sources.voc",
    "save_model": "inference.model_folder",
    "segment": "inference.segmenter",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'milseg' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"milseg.{_HOMES[name]}"), name)
    globals()[name] = value  # found at once from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
