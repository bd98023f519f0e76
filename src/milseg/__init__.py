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
    from milseg.bags import Bag, BagSet
    from milseg.checkpoint import ModelSpec, load_model, save_model
    from milseg.errors import UserError
    from milseg.evaluate import evaluate_model
    from milseg.models.transfer import build_model
    from milseg.options import TrainConfig
    from milseg.photos import open_photo
    from milseg.predict import segment
    from milseg.rules import RuleEntry
    from milseg.rules.choosing import mil_loss
    from milseg.segmenter import Segmenter, load
    from milseg.sources.digits import read_digits
    from milseg.sources.open import open_source
    from milseg.sources.voc import read_voc
    from milseg.train import fit

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
    "Bag": "bags",
    "BagSet": "bags",
    "ModelSpec": "checkpoint",
    "RuleEntry": "rules",
    "Segmenter": "segmenter",
    "TrainConfig": "options",
    "UserError": "errors",
    "build_model": "models.transfer",
    "evaluate_model": "evaluate",
    "fit": "train",
    "load": "segmenter",
    "load_model": "checkpoint",
    "mil_loss": "rules.choosing",
    "open_photo": "photos",
    "open_source": "sources.open",
    "read_digits": "sources.digits",
    "read_voc": "sources.voc",
    "save_model": "checkpoint",
    "segment": "predict",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'milseg' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"milseg.{_HOMES[name]}"), name)
    globals()[name] = value  # found at once from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
