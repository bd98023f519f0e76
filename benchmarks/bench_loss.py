"""What loss map, rule and loss cost in a training step of SqueezeNet at 320 x 320; at most 2 % is wanted.

    python benchmarks/bench_loss.py

Both sides are timed in turn in one process: a whole step (forward, rule, backward, SGD) and, on a map of the same size,
the rule alone with its backward pass to the scores. Prints medians and one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from milseg.models.backbones import build_fcn
from milseg.rules import RULES

PAPER_CLASSES = 21


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rule", default="max", choices=sorted(set(RULES) - {"oracle"}))
    options = parser.parse_args()

    torch.manual_seed(0)
    model = build_fcn("squeezenet1_0", PAPER_CLASSES).to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    images = torch.randn(options.batch, 3, 320, 320).contiguous(memory_format=torch.channels_last)
    sizes = torch.tensor([[320, 320]] * options.batch)
    tags = (torch.rand(options.batch, PAPER_CLASSES) < 0.1).to(torch.int8)
    tags[:, 0] = 1
    rule = RULES[options.rule].load().rule

    def whole_step() -> torch.Tensor:
        scores = model(images)
        valid = model.valid_mask(sizes, (scores.shape[-2], scores.shape[-1]))
        loss = rule(scores, tags, valid).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        detached: torch.Tensor = scores.detach()
        return detached

    def rule_alone(scores: torch.Tensor) -> None:
        leaf = scores.clone().requires_grad_()
        valid = model.valid_mask(sizes, (scores.shape[-2], scores.shape[-1]))
        rule(leaf, tags, valid).mean().backward()  # type: ignore[no-untyped-call]

    scores = whole_step()
    rule_alone(scores)
    steps, rules = [], []
    for _ in range(options.repeats):
        began = time.perf_counter()
        scores = whole_step()
        steps.append(time.perf_counter() - began)
        began = time.perf_counter()
        rule_alone(scores)
        rules.append(time.perf_counter() - began)
    step, alone = statistics.median(steps), statistics.median(rules)
    ratio = statistics.median(r / s for r, s in zip(rules, steps, strict=True))
    print(
        f"a step of {options.batch} photos: {step * 1e3:.1f} ms; "
        f"loss map, rule {options.rule} and loss: {alone * 1e3:.2f} ms"
    )
    print(f"share of the step: {100 * ratio:.2f} % (median of {options.repeats} pairs; wanted: at most 2 %)")
    print(
        json.dumps(
            {
                "benchmark": "loss",
                "rule": options.rule,
                "ratio": round(ratio, 5),
                "step_s": step,
                "rule_s": alone,
            }
        )
    )


if __name__ == "__main__":
    main()
