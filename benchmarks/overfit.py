"""Overfits eight real images from scratch, and reports whether AP50 reached 0.95.

python benchmarks/overfit.py --coco=DIR --detector=retinanet --workdir=runs/overfit

DIR contains ``images/`` and ``instances_train.json`` of COCO images with the ids below, all
landscape, with box sides of at least 9 pixels after the resize to 192 x 256. Without --coco, eight
drawn images are used instead.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

IDS = (165, 208, 450, 599, 60623, 196393, 501760, 565248)
GOAL = 0.95  # AP50


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--coco", type=Path)
    parser.add_argument("--detector", default="retinanet", choices=("retinanet", "faster_rcnn"))
    parser.add_argument("--workdir", type=Path, default=Path("runs/overfit"))
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from configs import overfit
    from drkd_jax.report.curves import curves, read_metrics
    from drkd_jax.training.loop import train

    config = overfit.get_config(options.detector)
    if options.steps:
        config.train.steps = options.steps
    if options.coco:
        options.workdir.mkdir(parents=True, exist_ok=True)
        subset = options.workdir / "eight.json"
        subset.write_text(json.dumps(only(IDS, options.coco / "instances_train.json")))
        source = f"coco:{options.coco / 'images'}:{subset}"
        config.data.train = config.data.val = source
    summary = train(config.to_dict(), options.workdir)
    curves(
        options.workdir / "curves.png",
        {options.detector: read_metrics(options.workdir / "metrics.jsonl")},
    )
    reached = summary["best"]["AP50"]
    print(f"AP50 {reached:.4f} at step {summary['best_step']}, wanted {GOAL}")
    return 0 if reached >= GOAL else 1


def only(ids: tuple[int, ...], instances: Path) -> dict:
    """The content of an instances file, only for some images."""
    full = json.loads(instances.read_text())
    return {
        "images": [image for image in full["images"] if image["id"] in ids],
        "annotations": [box for box in full["annotations"] if box["image_id"] in ids],
        "categories": full["categories"],
    }


if __name__ == "__main__":
    sys.exit(main())
