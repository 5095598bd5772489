"""``python -m drkd_jax evaluate``: COCO's numbers of a trained detector on a whole source."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drkd_jax.cli.arguments import Parser, positive
from drkd_jax.cli.deep import add_depth, with_depth
from drkd_jax.cli.detector import Trained, add_arguments, load_named, where
from drkd_jax.data.checking.findings import find, require_usable
from drkd_jax.data.sources import Source, open_source
from drkd_jax.data.sources.classes import list_classes, with_classes
from drkd_jax.errors import UserError
from drkd_jax.evaluation import EVALUATORS, why_nothing_to_find
from drkd_jax.fault_tolerance.writing import make_folder
from drkd_jax.renamed import read_content
from drkd_jax.step.settings import EvalSettings
from drkd_jax.training.evaluate import evaluate, write_evaluation
from drkd_jax.words import counted


def _titles(most: int) -> list[str]:
    """The titles as pycocotools prints them, for easy comparison."""
    precision, recall = "Average Precision  IoU", "Average Recall     IoU"
    return [
        f"{precision} 0.50:0.95, all,    {most} detections",
        f"{precision} 0.50,      all,    {most} detections",
        f"{precision} 0.75,      all,    {most} detections",
        f"{precision} 0.50:0.95, small,  {most} detections",
        f"{precision} 0.50:0.95, medium, {most} detections",
        f"{precision} 0.50:0.95, large,  {most} detections",
        f"{recall} 0.50:0.95, all,    {1:{len(str(most))}d} detection",
        f"{recall} 0.50:0.95, all,    {10:{len(str(most))}d} detections",
        f"{recall} 0.50:0.95, all,    {most} detections",
        f"{recall} 0.50:0.95, small,  {most} detections",
        f"{recall} 0.50:0.95, medium, {most} detections",
        f"{recall} 0.50:0.95, large,  {most} detections",
    ]


def main(argv: Sequence[str]) -> int:
    """Prints the 12 numbers; writes `eval.json` and `detections.json`.

    For a run they go into its work folder, for a file of weights into `--out`, if it is given. If
    they replace those of other images or of another step, a message says so beforehand. The
    numbers are printed first, so that a full disk does not lose them.

    Raises:
        UserError: wrong arguments, no checkpoint, or data of other classes.
    """
    parser = Parser("evaluate", "Scores a trained detector by COCO's 12 numbers.")
    add_arguments(parser)
    parser.add_argument("--data", help="source of images; the run's validation set by default")
    parser.add_argument("--max-images", type=int, default=0, help="only the first so many")
    parser.add_argument(
        "--max-detections",
        type=positive,
        help="of a class and image that count: the run's own, else COCO's 100, by default",
    )
    parser.add_argument(
        "--evaluator", choices=tuple(EVALUATORS), help="who scores; the run's own by default"
    )
    add_depth(parser)
    parser.add_argument("--out", help="folder for the results")
    arguments = parser.parse_args(list(argv))
    place, is_file = where(arguments)
    if is_file and not arguments.data:
        given = f"--workdir={place} is a file, which" if arguments.workdir else "--weights"
        raise UserError(f"{given} needs --data: a file does not say which images to score")
    asked = {
        "max_images": arguments.max_images,
        "evaluator": arguments.evaluator,
        "max_detections": arguments.max_detections,
    }
    asked = {name: value for name, value in asked.items() if value}
    limit = EvalSettings(**asked).least_limit if arguments.max_detections else None
    out = arguments.out or (None if is_file else place)
    if arguments.out:
        make_folder(arguments.out, "--out")

    trained = with_depth(load_named(arguments, limit), arguments)
    if out and not arguments.out:
        try:
            make_folder(out, "--workdir")
        except UserError as error:  # its message ends in "name another place"
            raise UserError(f"{error} for the results (--out=DIR)") from error
    pipeline = trained.pipeline
    source = open_source(
        arguments.data or trained.config["data"]["val"],
        pipeline.on_error,
        exif=pipeline.exif,
        depth=pipeline.depth,
    )
    source, category_ids, notes = _by_name(trained, source)
    require_usable(source)
    settings = dataclasses.replace(trained.eval, **asked)
    for finding in find(source, max_boxes=None, max_detections=settings.max_detections):
        if finding.grave:
            print(f"warning: {finding.text}", file=sys.stderr, flush=True)
    count = min(settings.max_images or len(source), len(source))
    about = {"step": trained.step, "data": source.spec, "images": count}
    replaced = _replaced(Path(out) / "eval.json", about, settings) if out else ""
    if replaced:
        print(f"warning: {replaced}", file=sys.stderr, flush=True)
    numbers, found = evaluate(
        trained.predict,
        trained.arrays,
        source,
        trained.pipeline,
        settings,
        trained.mesh,
        progress=True,
        category_ids=category_ids,
    )
    print(f"{source.spec}, {trained.origin if is_file else f'checkpoint of step {trained.step}'}")
    for (name, value), title in zip(numbers.items(), _titles(settings.max_detections), strict=True):
        print(f"{name:6s} {value:7.4f}   {title}")
    scored = [source.meta(index).image_id for index in range(count)]
    nothing = why_nothing_to_find(source.coco_ground_truth(), scored)
    for line in [*notes, *filter(None, [nothing])]:
        print(line)
    if out:
        sys.stdout.flush()
        most = settings.max_images
        write_evaluation(Path(out), trained.step, source, numbers, found, most)
    return 0


def _replaced(file: Path, about: dict[str, Any], settings: EvalSettings) -> str:
    """A message about the results of a different evaluation that would be replaced; "" if none.

    Args:
        file: the `eval.json` to be written.
        about: `step`, `data` and `images` of this evaluation.
        settings: settings of this evaluation.
    """
    left: Any = None
    with contextlib.suppress(OSError, ValueError):  # nothing exists, or nothing worth keeping
        left = read_content(json.loads(file.read_text()), file.name)
    if not isinstance(left, dict) or "AP" not in left:
        return ""
    same_limit = f"AR{settings.max_detections}" in left
    if same_limit and all(left.get(key) == value for key, value in about.items()):
        return ""

    def words(of: dict[str, Any], limit: str) -> str:
        number = of.get("images")
        images = counted(number, "image") if isinstance(number, int) else f"{number} images"
        return f"{of.get('data')} ({images}, step {of.get('step')}{limit})"

    limits = ("", "") if same_limit else (", another limit", f", {settings.max_detections} counted")
    return (
        f"{file} and detections.json beside it hold the scores of {words(left, limits[0])}, and "
        f"those of {words(about, limits[1])} will replace them; --out=DIR writes elsewhere"
    )


def _by_name(trained: Trained, source: Source) -> tuple[Source, tuple[Any, ...] | None, list[str]]:
    """Maps the source's classes to the detector's by name.

    Returns:
        (the source, the id of each of the detector's classes or None if the data lack the class,
        messages if the two differ).

    Raises:
        UserError: the detector lacks a class that has boxes, or all classes.
    """
    own, theirs, what = trained.categories, source.categories, f"--data={source.spec}"
    if not own:  # a file of weights without class names
        if trained.num_classes != len(theirs):
            more = ""
            if trained.num_classes == len(theirs) + 1:  # torchvision counts it in RetinaNet, too
                outputs = ",".join(str(number) for number in range(1, trained.num_classes))
                more = (
                    "; if its first output is the background's, as where a training of torchvision "
                    f"counted it, say so: convert --from=torchvision --set 'class_ids=[{outputs}]'"
                )
            raise UserError(
                f"{what} has {counted(len(theirs), 'class')}, "
                f"the detector {trained.num_classes}{more}"
            )
        return source, None, []
    names = {category.name for category in theirs}
    if not names & {category.name for category in own}:
        raise UserError(
            f"{what} has the classes {list_classes(theirs)}, the detector was trained on "
            f"{list_classes(own)}: they have no class in common"
        )
    source, notes = with_classes(source, own, what, "the detector")
    ids = tuple(c.id if c.name in names else None for c in source.categories)
    return source, ids, notes
