"""The same runs in float32 and in bfloat16: loss curves and AP over seeds, side by side.

    python benchmarks/precision.py --workdir=runs/precision --out=docs/precision.png --seeds=5

A small distilled RetinaNet overfits a dozen drawn images; with the same seed, both start from the
same weights and see the images in the same order. Master weights, losses and sums are float32 in
both. A third arm measures how much runs of one seed differ by chance: float32 again, with a
learning rate larger by a millionth. Existing runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

from drkd_jax.recipes import common
from drkd_jax.report.curves import curves, read_metrics
from drkd_jax.report.paired import t_reach
from drkd_jax.training.loop import train

# name: (precision, factor of the learning rate)
ARMS = {"float32": ("float32", 1), "bfloat16": ("bfloat16", 1), "again": ("float32", 1 + 1e-6)}
SCORES = ("AP", "AP50")
LOSSES = ("cls_loss", "box_loss", "total")
LAST = 8  # a final loss is the mean of so many logged lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/precision"))
    parser.add_argument("--out", type=Path, default=Path("runs/precision.png"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=1, help="runs of each, from seed 0 on")
    options = parser.parse_args()

    found: dict[str, dict[str, list[float]]] = {arm: {} for arm in ARMS}
    records = {}
    for seed in range(options.seeds):
        for arm in ARMS:
            folder = options.workdir / arm / f"seed{seed}"
            done = folder / "summary.json"
            if not done.is_file():
                train(recipe(arm, options.steps, seed), folder)
            lines = read_metrics(folder / "metrics.jsonl")
            figures = {name: 100 * json.loads(done.read_text())["final"][name] for name in SCORES}
            figures |= last_losses(lines)
            for name, value in figures.items():
                found[arm].setdefault(name, []).append(value)
            if not seed and arm != "again":
                records[arm] = lines
        curves(options.out, records)
        (options.workdir / "precision.json").write_text(json.dumps(found, indent=2) + "\n")
    print(table(found))
    return 0


def recipe(arm: str, steps: int, seed: int) -> dict:
    """A config small enough for a CPU, large enough to learn something in 200 steps."""
    precision, factor = ARMS[arm]
    config = common.base()
    config.seed = seed
    config.data.update(
        train="shapes:12",
        val="shapes:12",  # the same images: 200 steps are too few for unseen ones
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
        learning_rate=0.02 * factor,
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


def last_losses(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Means of the last logged losses."""
    logged = [line for line in lines if "total" in line][-LAST:]
    return {name: float(np.mean([line[name] for line in logged])) for name in LOSSES}


def table(found: dict[str, dict[str, list[float]]]) -> str:
    """Means over the seeds, and paired differences of each arm from float32."""
    rows = [
        "| | float32 | other | | difference | over seeds | each pair |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in list(ARMS)[1:]:
        for name in (*SCORES, *LOSSES):
            first, second = found["float32"][name], found[arm][name]
            pairs = [b - a for a, b in zip(first, second, strict=True)]
            digits = 1 if name in SCORES else 4
            mean, reach = statistics.mean(pairs), t_reach(np.array(pairs))
            ends = (f"{end:+.{digits}f}" for end in (mean - reach, mean + reach))
            cells = [
                name,
                spread(first, digits),
                arm,
                spread(second, digits),
                f"{mean:+.{digits}f}",
                " to ".join(ends) if len(pairs) > 1 else "-",
                ", ".join(f"{pair:+.{digits}f}" for pair in pairs),
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def spread(values: list[float], digits: int) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


if __name__ == "__main__":
    sys.exit(main())
