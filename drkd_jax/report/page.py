"""``report.html``: one file that compares finished runs; it needs no network and no scripts.

`runs` reads and checks work folders; `tables`, `curves` and `gallery` turn them into HTML with
`markup`; this module assembles the page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import drkd_jax
from drkd_jax.evaluation import class_names
from drkd_jax.report import tables
from drkd_jax.report.comparison import DRAWS, Comparison, compare
from drkd_jax.report.curves import charts
from drkd_jax.report.found import look
from drkd_jax.report.gallery import MOST_PIXELS, gallery, heat_maps
from drkd_jax.report.markup import Html, join, style_sheet, tag
from drkd_jax.report.relations import Relations
from drkd_jax.report.runs import (
    RunFiles,
    Truth,
    open_truth,
    same_images,
    shared_images,
)
from drkd_jax.report.tables import points
from drkd_jax.words import counted


class _Compared(NamedTuple):
    """The runs, and the results that need ground truth."""

    runs: Sequence[RunFiles]
    reference: int
    other: int  # the run that images and classes are sorted by
    truth: Truth | None
    comparison: Comparison | None
    notes: list[str]

    @property
    def same(self) -> bool:
        """Whether all runs were scored on the same number of images."""
        return same_images(self.runs)


def page(
    runs: Sequence[RunFiles],
    reference: int = 0,
    *,
    title: str = "DRKD report",
    words: Sequence[str] = (),
    relations: tuple[Relations, Mapping[str, str]] | None = None,
    draws: int = DRAWS,
    tell: Callable[[str], None] = lambda note: None,
) -> str:
    """One self-contained HTML page about finished runs.

    Args:
        runs: Runs evaluated on the same images, or some only on the first of them; comparisons
            then use the images that all were evaluated on.
        reference: Position of the run that the others are compared with. Images and classes are
            sorted by the change from it to the first of the others.
        title: Title of the page.
        words: Text of the first section; by default each run's difference from the reference.
        relations: Relations of a distilled run on one image, and the names of its two sides.
        draws: Number of bootstrap draws of the validation images, for the intervals.
        tell: Called with each note about missing or differing data; the page has them too.

    Returns:
        HTML without scripts and without external resources.

    Raises:
        UserError: A run's detections do not fit the ground truth.
    """
    done = _compared(runs, reference, draws)
    for note in done.notes:
        tell(note)
    named = [
        ("short", "In short", _short(done, words)),
        ("trained", "What was trained", tables.trained(runs)),
        ("numbers", "Numbers", _numbers(done)),
        ("curves", "Curves", charts({run.name: run.records for run in runs})),
        ("images", "Images", _images(done)),
        ("relations", "Relations", heat_maps(*relations) if relations else None),
        ("settings", "Settings in which the runs differ", tables.settings(runs)),
        ("reading", "How to read this", _reading(done, draws)),
    ]
    kept = [(key, heading, content) for key, heading, content in named if content is not None]
    body = tag(
        "body",
        tag("header", tag("h1", title), tag("p", _about(done))),
        tag("nav", [tag("a", h, href=f"#{key}") for key, h, _ in kept], aria_label="contents"),
        tag(
            "main",
            [tag("section", tag("h2", h, id=key), content) for key, h, content in kept],
        ),
        tag("footer", tag("p", tag("small", f"drkd_jax {drkd_jax.__version__}"))),
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(style_sheet(max(len(runs) + 1, MOST_PIXELS)))),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _compared(runs: Sequence[RunFiles], reference: int, draws: int) -> _Compared:
    other = next((i for i in range(len(runs)) if i != reference), reference)
    truth, why = open_truth(runs[reference], shared_images(runs))
    notes = []
    if truth is None:
        notes.append(
            f"The validation images cannot be read any more, so intervals, classes and images "
            f"are missing. {why}"
        )
    without = [run.name for run in runs if run.found is None]
    if without:
        notes.append(
            f"{', '.join(without)}: no detections.json, so intervals, classes and images are "
            "missing; `python -m drkd_jax evaluate` writes it."
        )
    comparison = None
    if truth is not None and not without:
        comparison = compare(runs, reference, truth, draws)
        notes += comparison.notes
    if not same_images(runs):
        notes.insert(0, _unequal(runs, comparison is not None))
    return _Compared(runs, reference, other, truth, comparison, notes)


def _unequal(runs: Sequence[RunFiles], compared: bool) -> str:
    """A message that runs were scored on different images, its effect, and how to correct it."""
    fewest = min((run for run in runs if run.images), key=lambda run: run.images)
    most = max(runs, key=lambda run: run.images)
    what = (
        f"differences, intervals, classes and images are of the first {fewest.images}, on "
        "which all were scored, and COCO's numbers of each run's own"
        if compared
        else "they are not compared"
    )
    counts = ", ".join(f"{run.name} {run.images or 'not known'}" for run in runs)
    return (
        f"The runs were scored on different numbers of images ({counts}): {what}. `python -m "
        f"drkd_jax evaluate --workdir={fewest.folder} --data={fewest.data} "
        f"--max-images={most.images}` scores {fewest.name} on as many as {most.name}."
    )


def _about(done: _Compared) -> str:
    names = ", ".join(run.name for run in done.runs)
    counts = ""
    if not done.same:
        own = ", ".join(str(run.images or "all") for run in done.runs)
        counts = f" ({own} images)"
    elif done.truth is not None:
        number = len(done.truth.coco["images"])
        counts = f" ({counted(number, 'image')}, {counted(len(done.truth.objects), 'object')})"
    return f"{names}, measured on {done.runs[0].data or 'images that are not named'}{counts}."


def _short(done: _Compared, words: Sequence[str]) -> Html:
    if not words:
        words = [_difference(done, i) for i in range(len(done.runs)) if i != done.reference]
        if not words:
            words = [f"{done.runs[0].name} reaches {points(done.runs[0].scores['AP'])} AP."]
    # The text is also used in results.md; its Markdown marks are removed here.
    said = [tag("p", word.replace("**", "").replace("`", "")) for word in words]
    for run in done.runs:
        last = (run.summary.get("distillation") or {}).get("text")
        if last:
            said.append(tag("p", tag("strong", f"{run.name}: "), str(last)))
    warned = [f"{run.name}: {w}" for run in done.runs for w in run.summary.get("warnings") or ()]
    alarms = [tag("p", text, class_="warning") for text in [*done.notes, *warned]]
    return join(tag("div", said, class_="verdict"), alarms)


def _difference(done: _Compared, i: int) -> str:
    run, base = done.runs[i], done.runs[done.reference]
    if done.comparison is None:
        text = _have(run, run.scores["AP"], base, base.scores["AP"])
        if not done.same:  # a difference would also be due to the images
            return f"{text} (of {run.images or 'all'} and {base.images or 'all'} images)."
        return f"{text}: {points(run.scores['AP'] - base.scores['AP'], signed=True)}."
    # Recomputed, so that the difference is for the same images as its interval.
    own, others = (done.comparison.scores[at]["AP"].value for at in (i, done.reference))
    spread = done.comparison.differences[i]["AP"]
    part = "" if done.same else f"On the first {shared_images(done.runs)} images "
    text = f"{part}{_have(run, own, base, others)}: {points(spread.value, signed=True)}"
    between = f"95 % interval {points(spread.low, True)} to {points(spread.high, True)}"
    verdict = (
        "more than the choice of the validation images explains"
        if spread.settled
        else "within what the choice of the validation images alone explains"
    )
    return f"{text} ({between}), {verdict}."


def _have(run: RunFiles, ours: float, base: RunFiles, theirs: float) -> str:
    return f"{run.name} has {points(ours)} AP, {base.name} {points(theirs)}"


def _numbers(done: _Compared) -> Html:
    parts = [
        tables.differences(done.runs, done.reference, done.comparison),
        tables.numbers(done.runs, done.comparison),
        tables.sizes(done.runs, done.truth if done.same else None),
    ]
    if done.comparison is not None:
        parts.append(tables.classes(done.runs, done.reference, done.other, done.comparison))
    return tag("div", parts, class_="side")


def _images(done: _Compared) -> Html | None:
    if done.truth is None or done.comparison is None:
        return None
    return gallery(
        look(done.runs, done.truth),
        [run.name for run in done.runs],
        class_names(done.truth.coco["categories"]),
        done.truth,
        done.reference,
        done.other,
    )


def _reading(done: _Compared, draws: int) -> Html:
    words = [
        "Numbers are those of each run's last evaluation (eval.json). AP and recall are COCO's, in "
        "points of 100; a line (-) stands where the images have no such object.",
    ]
    if done.comparison is not None:
        words.append(
            f"Intervals come from drawing the validation images again {draws} times, with "
            "replacement, the same draw for every run. They show what depends on the choice of "
            "images. Another training seed changes AP too; one run of each kind cannot show that."
        )
    return join([tag("p", each) for each in words])
