"""``python -m drkd_jax evaluate``: a trained detector over a whole source, in COCO's numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from drkd_jax.cli.arguments import Parser
from drkd_jax.cli.detector import load, load_weights
from drkd_jax.data.sources import open_source
from drkd_jax.errors import UserError
from drkd_jax.evaluation import EVALUATORS
from drkd_jax.training.evaluate import evaluate, write_evaluation

# As pycocotools prints them, so that they can be compared by eye.
_TITLES = {
    "AP": "Average Precision  IoU 0.50:0.95, all,    100 detections",
    "AP50": "Average Precision  IoU 0.50,      all,    100 detections",
    "AP75": "Average Precision  IoU 0.75,      all,    100 detections",
    "AP_S": "Average Precision  IoU 0.50:0.95, small,  100 detections",
    "AP_M": "Average Precision  IoU 0.50:0.95, medium, 100 detections",
    "AP_L": "Average Precision  IoU 0.50:0.95, large,  100 detections",
    "AR1": "Average Recall     IoU 0.50:0.95, all,      1 detection",
    "AR10": "Average Recall     IoU 0.50:0.95, all,     10 detections",
    "AR100": "Average Recall     IoU 0.50:0.95, all,    100 detections",
    "AR_S": "Average Recall     IoU 0.50:0.95, small,  100 detections",
    "AR_M": "Average Recall     IoU 0.50:0.95, medium, 100 detections",
    "AR_L": "Average Recall     IoU 0.50:0.95, large,  100 detections",
}


def main(argv: Sequence[str]) -> int:
    """Prints the 12 numbers; writes `eval.json` and `detections.json`.

    A run's go into its work folder, those of a file of weights into `--out`, if it is given.

    Raises:
        UserError: wrong arguments, no checkpoint, or data of other classes.
    """
    parser = Parser("evaluate", "Scores a trained detector by COCO's 12 numbers.")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--workdir", help="work folder of a training run")
    which.add_argument("--weights", help="a file of ours, of torchvision or of mmdetection")
    parser.add_argument("--data", help="source of pictures; the run's validation set by default")
    parser.add_argument("--which", default="best", choices=("best", "last"), help="checkpoint")
    parser.add_argument("--size", type=_size, metavar="SxL", help="--weights: 800x1333 by default")
    parser.add_argument("--batch-size", type=int, default=1, help="--weights: pictures a step")
    parser.add_argument("--max-pictures", type=int, default=0, help="only the first so many")
    parser.add_argument(
        "--evaluator", choices=tuple(EVALUATORS), help="who scores; the run's own by default"
    )
    parser.add_argument("--out", help="folder for the results")
    arguments = parser.parse_args(list(argv))
    if arguments.weights and not arguments.data:
        raise UserError("--weights needs --data: a file does not say which pictures to score")

    if arguments.weights:
        trained = load_weights(arguments.weights, arguments.size, arguments.batch_size)
        what = arguments.weights
    else:
        trained = load(arguments.workdir, arguments.which)
        what = f"checkpoint of step {trained.step}"
    pipeline = trained.pipeline
    source = open_source(
        arguments.data or trained.config["data"]["val"],
        pipeline.on_error,
        exif=pipeline.exif,
        depth=pipeline.depth,
    )
    own = [category.name for category in trained.categories]
    theirs = [category.name for category in source.categories]
    if own and own != theirs:
        raise UserError(
            f"--data={source.spec} has the classes {', '.join(theirs[:8])} ({len(theirs)}), the "
            f"detector was trained on {', '.join(own[:8])} ({len(own)})"
        )
    if trained.num_classes != len(theirs):
        raise UserError(
            f"--data={source.spec} has {len(theirs)} classes, the detector {trained.num_classes}"
        )
    settings = trained.eval
    if arguments.max_pictures:
        settings = dataclasses.replace(settings, max_pictures=arguments.max_pictures)
    if arguments.evaluator:
        settings = dataclasses.replace(settings, evaluator=arguments.evaluator)
    numbers, found = evaluate(
        trained.predict,
        trained.arrays,
        source,
        trained.pipeline,
        settings,
        trained.mesh,
        progress=True,
    )
    out = arguments.out or arguments.workdir
    if out:
        write_evaluation(Path(out), trained.step, source, numbers, found)
    print(f"{source.spec}, {what}")
    for name, title in _TITLES.items():
        print(f"{name:6s} {numbers[name]:7.4f}   {title}")
    return 0


def _size(text: str) -> tuple[int, int]:
    """Two numbers from text like 800x1333."""
    shorter, longer = (int(part) for part in text.split("x"))
    return shorter, longer
