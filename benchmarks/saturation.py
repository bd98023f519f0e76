"""How far the paper's loss is already at zero before training, for one network and several scales of its rows.

    python benchmarks/saturation.py --root VOCDIR --tags TAGS --classes cat,dog --backbone squeezenet1_0 --weights FILE

Scaling all rows leaves every mask of the baseline as it is (the background's row is zero), but not the softmax. For
each scale: the standard deviation of the scores, the paper's loss, the probability at the chosen places, and how much
gradient is left to the scores. Needs photos and weights, so `make benchmarks` leaves it out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from milseg.data.loader import load_batch
from milseg.data.sources.voc import read_voc
from milseg.models.transfer import build_model
from milseg.rules.choosing import choose_max, mil_loss
from milseg.rules.loss_map import log_probs, loss_map


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--tags", type=Path)
    parser.add_argument("--classes", type=lambda text: text.split(","))
    parser.add_argument("--backbone", default="squeezenet1_0")
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--photos", type=int, default=64)
    options = parser.parse_args()

    bags = read_voc(options.root, "train", classes=options.classes, tags_file=options.tags)
    model, _ = build_model(options.backbone, bags.classes, weights=options.weights, output_stride=16)
    model.eval()
    batch = load_batch(bags, range(min(options.photos, len(bags))))
    with torch.no_grad():
        scores = model(batch.images)
    valid = model.valid_mask(batch.sizes, (scores.shape[-2], scores.shape[-1]))
    present = (batch.tags == 1).float()
    places = scores.permute(0, 2, 3, 1)[valid]
    print(
        f"{options.backbone}, {len(batch.names)} photos; "
        f"standard deviation of a class's scores {places[:, 1:].std():.1f}"
    )
    print("| scale | paper's loss | median p, classes | median p, background | gradient to the scores |")
    print("|---:|---:|---:|---:|---:|")
    rows = []
    for scale in (1.0, 0.3, 0.1, 0.05, 0.02):
        leaf = (scores * scale).requires_grad_()
        loss = mil_loss(leaf, batch.tags, valid).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        chosen = choose_max(loss_map(leaf, batch.tags).detach(), present, valid[:, None]) > 0
        p = log_probs(leaf, batch.tags).detach().exp()
        assert leaf.grad is not None
        row = {
            "scale": scale,
            "loss": float(loss.detach()),
            "p_classes": float(p[:, 1:][chosen[:, 1:]].median()),
            "p_background": float(p[:, 0][chosen[:, 0]].median()),
            "gradient": float(leaf.grad.abs().sum()),
        }
        rows.append(row)
        print(
            "| {scale:g} | {loss:.4f} | {p_classes:.3f} | {p_background:.3f} | {gradient:.4f} |".format(**row)
        )
    print(
        json.dumps(
            {
                "benchmark": "saturation",
                "backbone": options.backbone,
                "rows": rows,
                "ratio": rows[-1]["gradient"] / max(rows[0]["gradient"], 1e-12),
            }
        )
    )


if __name__ == "__main__":
    main()
