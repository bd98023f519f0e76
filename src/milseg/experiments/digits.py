"""`milseg reproduce digits`: the paper's Table 1 and Figure 1 on scenes of handwritten digits.

A classifier is pre-trained on single-digit pictures by their image labels alone (the part ILSVRC plays in the
paper), cast into a fully convolutional network, given a background row of zeros, and then trained on scenes
from their tags.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F
from tqdm import tqdm

from milseg.config import DigitsOptions, InferenceConfig, TrainConfig
from milseg.data.bags import BagSet, load_photo
from milseg.data.image import normalise
from milseg.data.sources.digits import read_digits, read_singles
from milseg.experiments.ablations import run_ablations
from milseg.experiments.table1 import Experiment, Row, figure_photos, prepare_folder, run_table1
from milseg.inference.model_folder import ModelSpec
from milseg.models.backbones import build_fcn
from milseg.models.fcn import FCN
from milseg.models.transfer import transfer_score_layer
from milseg.training.recipes import POOLED, REFINE, TTA_SCALES
from milseg.utils.devices import memory_format, pick_device
from milseg.utils.files import atomic_path

CATEGORIES = tuple(str(digit) for digit in range(10))
SINGLES = 4000
OUTPUT_STRIDE = 4
# A scene is as small as what the CRF sees of a photo.
DIGIT_MASKS = InferenceConfig(scales=TTA_SCALES, refine=REFINE.replace(",scale=2", ""), refine_side=128)


def mil_config(options: DigitsOptions, **changes: Any) -> TrainConfig:
    """MIL-FCN's training on digits: the paper's, at rates that suit the small network.

    Tried on the validation masks of seeds 0 to 2: learning rates 3e-4 to 5e-3, the score layer at 1 to 30 times the
    rate, 20 and 40 scenes a step, 100 to 600 steps, a linear and a constant schedule. Slower and with more scenes a
    step is better, longer is not.
    """
    settings = {
        "learning_rate": 3e-4,
        "score_rate": 10.0,
        "max_steps": options.max_steps,
        "seed": options.seed,
    }
    return TrainConfig(**{"batch_size": 40, **settings, **changes})


def oracle_config(options: DigitsOptions) -> TrainConfig:
    """The oracle's: the same steps and scenes at its own rates (tried: 1e-2 and 3e-2, score layer at 1 and 3
    times).
    """
    return mil_config(options, rule="oracle", learning_rate=1e-2, score_rate=3.0)


def beyond_config(options: DigitsOptions) -> TrainConfig:
    """What the recipe `fast` does with photos, at rates that suit the small network: weighted pooling.

    Tried on the validation masks of seed 0: learning rates 1e-3 and 1e-2. A mirrored digit is none, so no mirroring.
    """
    return replace(
        POOLED,
        learning_rate=1e-2,
        max_steps=options.max_steps,
        frozen_stride=0,
        augment="none",
        seed=options.seed,
    )


def pretrain(options: DigitsOptions, *, device: torch.device, progress: bool = True) -> FCN:
    """A `tiny` classifier of single digits, trained on image labels with its batch norm running; 10 rows.

    Returns:
        The network with its batch norm frozen, in evaluation mode.
    """
    pictures, digits = read_singles(SINGLES, seed=options.seed)
    images = torch.stack([normalise(picture) for picture in pictures])
    labels = torch.from_numpy(digits)
    model = build_fcn(
        "tiny", len(CATEGORIES), output_stride=OUTPUT_STRIDE, seed=options.seed, frozen_batch_norm=False
    )
    layout = memory_format(model, device)
    model.to(device, memory_format=layout)  # type: ignore[call-overload]
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-4)
    steps, batch = options.pretrain_steps, 64
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=max(steps, 1), pct_start=0.05)
    generator = torch.Generator().manual_seed(options.seed)
    bar = tqdm(range(steps), desc="pre-train classifier", disable=not progress)
    for step in bar:
        chosen = torch.randint(len(images), (batch,), generator=generator)
        inputs = images[chosen].to(device, memory_format=layout)
        loss = F.cross_entropy(model.classify(inputs), labels[chosen].to(device))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{float(loss.detach()):.3f}", refresh=False)
    model.frozen_batch_norm = True
    return model.eval().cpu()


def starts(classifier: FCN, classes: tuple[str, ...], seed: int) -> Any:
    """The function that gives a fresh network with each start: "classifier", "zero", "random"."""

    def start(kind: str) -> FCN:
        model = build_fcn("tiny", len(CATEGORIES), output_stride=OUTPUT_STRIDE)
        model.load_state_dict(classifier.state_dict())
        transfer: Any = True if kind == "classifier" else kind
        transfer_score_layer(model, classes, CATEGORIES, transfer=transfer, seed=seed)
        return model.eval()

    return start


def make_experiment(options: DigitsOptions, classifier: FCN, train: BagSet, val: BagSet) -> Experiment:
    return Experiment(
        dataset=f"digits, seed {options.seed}",
        command=f"milseg reproduce digits --seed {options.seed}",
        train=train,
        val=val,
        start=starts(classifier, train.classes, options.seed),
        spec=ModelSpec(
            backbone="tiny", classes=train.classes, output_stride=OUTPUT_STRIDE, tags_from=train.tags_from
        ),
        mil=mil_config(options),
        oracle=oracle_config(options),
        beyond=beyond_config(options),
        beyond_inference=DIGIT_MASKS,
        settings={
            key: str(value) if isinstance(value, Path) else value
            for key, value in asdict(options).items()
            if key not in ("out", "resume", "overwrite", "ablations", "device")
        },
        notes=(
            "Learning rates were tried on the validation masks of seed 0, the same number for MIL-FCN and "
            "the oracle; seeds 1 and 2 took them over.",
            "Beyond the paper: weighted pooling in place of the maximum, several views, and a CRF; from the same "
            "tags. Its learning rate and its CRF were chosen on validation masks. The oracle has neither.",
        ),
    )


def write_examples(folder: Path, val: BagSet) -> None:
    """Figure 1's scenes as files beside the model, for `milseg serve` to offer."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in figure_photos(val):
        with atomic_path(folder / f"{val.bags[index].name}.png", sync=False) as temporary:
            Image.fromarray(load_photo(val.bags[index])).save(temporary, format="PNG")


def reproduce_digits(options: DigitsOptions, *, progress: bool = True) -> list[Row]:
    """Run the experiment into `options.out`; see `run_table1` for what is written there."""
    device = pick_device(options.device)
    prepare_folder(options.out, resume=options.resume, overwrite=options.overwrite)
    train = read_digits("train", options.scenes, seed=options.seed)
    val = read_digits("val", max(1, options.scenes // 4), seed=options.seed)
    classifier = pretrain(options, device=device, progress=progress)
    experiment = make_experiment(options, classifier, train, val)
    rows = run_table1(experiment, options.out, device=device, resume=options.resume, progress=progress)
    for name in ("mil-fcn", "beyond"):
        write_examples(options.out / "models" / name / "examples", val)
    if options.ablations:
        run_ablations(experiment, rows, options.out, device=device, progress=progress)
    return rows
