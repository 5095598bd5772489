"""``python -m drkd_jax evaluate``: a trained detector over a whole source, in COCO's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drkd_jax.cli.arguments import Parser
from drkd_jax.cli.detector import load
from drkd_jax.data.sources import open_source
from drkd_jax.errors import UserError
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
    """Prints the 12 numbers; writes `eval.json` and `detections.json` into the work folder.

    Raises:
        UserError: wrong arguments, no checkpoint, or data of other classes.
    """
    parser = Parser("evaluate", "Scores a trained detector by COCO's 12 numbers.")
    parser.add_argument("--workdir", required=True, help="work folder of a training run")
    parser.add_argument("--data", help="source of pictures; the run's validation set by default")
    parser.add_argument("--which", default="best", choices=("best", "last"), help="checkpoint")
    arguments = parser.parse_args(list(argv))

    trained = load(arguments.workdir, arguments.which)
    source = open_source(arguments.data or trained.config["data"]["val"])
    own = [category.name for category in trained.categories]
    theirs = [category.name for category in source.categories]
    if own != theirs:
        raise UserError(
            f"--data={source.spec} has the classes {', '.join(theirs[:8])} ({len(theirs)}), the "
            f"detector was trained on {', '.join(own[:8])} ({len(own)})"
        )
    numbers, found = evaluate(
        trained.predict,
        trained.arrays,
        source,
        trained.pipeline,
        trained.eval,
        trained.mesh,
        progress=True,
    )
    write_evaluation(Path(arguments.workdir), trained.step, source, numbers, found)
    print(f"{source.spec}, checkpoint of step {trained.step}")
    for name, title in _TITLES.items():
        print(f"{name:6s} {numbers[name]:7.4f}   {title}")
    return 0
