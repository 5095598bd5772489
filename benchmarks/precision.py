"""The same run in float32 and in bfloat16: loss curves and AP, side by side.

python benchmarks/precision.py --workdir=runs/precision --out=docs/precision.png

A small distilled RetinaNet learns a dozen drawn pictures by heart, from the same starting weights,
in the same order. Master weights, losses and sums are float32 in both.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from drkd_jax.recipes import common
from drkd_jax.report.curves import curves, read_metrics
from drkd_jax.training.loop import train

PRECISIONS = ("float32", "bfloat16")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/precision"))
    parser.add_argument("--out", type=Path, default=Path("runs/precision.png"))
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()

    records, scores = {}, {}
    for precision in PRECISIONS:
        folder = options.workdir / precision
        scores[precision] = train(recipe(precision, options.steps), folder)["final"]
        records[precision] = read_metrics(folder / "metrics.jsonl")
    curves(options.out, records)
    print(table(records, scores))
    (options.workdir / "precision.json").write_text(json.dumps(scores, indent=2) + "\n")
    return 0


def recipe(precision: str, steps: int) -> dict:
    """Small enough for a CPU, large enough to learn something in 200 steps."""
    config = common.base()
    config.data.update(
        train="shapes:12",
        val="shapes:12",  # the same ones: 200 steps are too few for unseen pictures
        canvases=((128, 128),),
        shorter=128,
        longer=128,
        max_boxes=10,
        flip=0.0,
    )
    config.student.update(common.small_detector("retinanet"))
    common.with_teacher(config, "", **config.student.to_dict() | {"init": "random"})
    config.teacher.dtype = precision
    config.distill = common.small_distillation()
    config.eval.batch_size = 12
    config.train.update(
        precision=precision,
        batch_size=6,
        steps=steps,
        learning_rate=0.02,
        warmup_steps=20,
        warmup_factor=0.01,
        decay_at=(0.8,),
        weight_decay=0.0,
        clip_norm=5.0,
        log_every=5,
        checkpoint_every=steps,
        eval_every=max(1, steps // 4),
    )
    return config.to_dict()


def table(records: dict, scores: dict) -> str:
    """Final numbers of both, and how far apart the losses are."""
    names = ["cls_loss", "box_loss", "distill/pixel_relation", "distill/instance_relation"]
    names += ["distill/instance_feature", "total"]
    logged = {
        precision: [line for line in lines if "total" in line]
        for precision, lines in records.items()
    }
    last = {
        precision: {name: float(np.mean([line[name] for line in lines[-8:]])) for name in names}
        for precision, lines in logged.items()
    }
    rows = ["| | float32 | bfloat16 |", "|---|---|---|"]
    rows += [
        f"| {name}, mean of the last 40 steps | "
        + " | ".join(f"{last[p][name]:.4f}" for p in PRECISIONS)
        + " |"
        for name in names
    ]
    rows += [
        f"| {name} | " + " | ".join(f"{scores[p][name]:.4f}" for p in PRECISIONS) + " |"
        for name in ("AP", "AP50")
    ]
    apart = [
        abs(one["total"] / other["total"] - 1)
        for one, other in zip(*(logged[p] for p in PRECISIONS), strict=True)
    ]
    middle, most = np.median(apart), max(apart)
    rows.append(f"\ntotal loss of 5 steps: {middle:.2%} apart in the median, {most:.2%} at most")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
