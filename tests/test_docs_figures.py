"""The tables of docs/results.md and the README agree with docs/gain/*.json."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
METRICS = ("AP", "AP50", "AP_S", "AP_M")
# The README's rows, in order.
ROWS = (
    "deeppcb_few_labels",
    "deeppcb_few_labels_2400",
    "deeppcb_cross_few_labels",
    "deeppcb_retinanet_few_labels",
    "deeppcb_pretrained",
    "deeppcb_pretrained_both",
    "deeppcb_retinanet_pretrained",
    "deeppcb",
    "deeppcb_2400",
    "deeppcb_pretrained_all",
    "deeppcb_small_gap",
    "deeppcb_narrow",
    "deeppcb_cross",
    "deeppcb_cross_2400",
    "deeppcb_retinanet_2400",
    "shapes_faster_rcnn",
    "shapes_retinanet",
)


def results(name: str) -> dict[str, Any]:
    return json.loads((DOCS / "gain" / f"{name}.json").read_text())


def plain(value: float) -> str:
    return f"{100 * value:.1f}"


def signed(*values: float) -> str:
    return " to ".join(f"{100 * value:+.1f}" for value in values)


def spread(found: dict[str, float]) -> str:
    return f"{plain(found['mean'])} ± {plain(found['sd'])}"


def pairs(values: list[float]) -> str:
    return ", ".join(map(signed, values))


def said(found: dict[str, Any]) -> tuple[str, str, str, str]:
    """A difference as in the tables: mean, both intervals, pairs."""
    mean = f"**{signed(found['mean'])}**" if found["above_zero"] else signed(found["mean"])
    seeds, both = (found["t_low"], found["t_high"]), (found["low"], found["high"])
    return mean, signed(*seeds), signed(*both), pairs(found["each"])


def rows_of(content: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """All rows that a table of these runs may have, without their labels."""
    for teacher in content["teachers"]:
        yield "1", *(plain(teacher["scores"][name]) for name in METRICS)
    each: dict[tuple[str, int, str], dict[int, float]] = {}
    for run in content["runs"]:
        if run["state"] == "done":
            key = run["detector"], run["budget"], run["arm"]
            each.setdefault(key, {})[run["seed"]] = run["scores"]["AP"]
    for found in content["comparisons"]:
        scores, difference = found["scores"], found.get("difference", {})
        yield str(len(found["seeds"])), *(spread(scores[name]) for name in METRICS)
        short = spread(scores["AP"]), plain(scores["AP50"]["mean"]), plain(scores["AP_S"]["mean"])
        if not difference:
            yield *short, "", "", "", ""
            continue
        yield *short, *said(difference["AP"])
        for name in METRICS:
            yield name, *said(difference[name])
        own = each[found["detector"], found["budget"], found["arm"]]
        whole = each.get((found["detector"], found["budget"], "all"), {})
        off = np.array([own[seed] - whole[seed] for seed in own if seed in whole])
        if len(off) > 1 and off.any():  # beside all terms
            half = stats.t.ppf(0.975, len(off) - 1) * off.std(ddof=1) / len(off) ** 0.5
            low, high = off.mean() - half, off.mean() + half
            mean = signed(off.mean()) if low <= 0 <= high else f"**{signed(off.mean())}**"
            yield spread(scores["AP"]), mean, signed(low, high), pairs(list(off))


def tables() -> Iterator[tuple[str, list[str]]]:
    """The name of each plot, and the table rows after it, up to the next plot or section."""
    for part in re.split(r"\n(?=## |!\[)", (DOCS / "results.md").read_text()):
        if found := re.match(r"!\[[^\]]*\]\(gain/(\w+)\.png\)", part):
            lines = part.split("\n### ")[0].split("\n")
            yield found[1], [line for line in lines if re.match(r"\| .*\d\.\d", line)]


def test_every_row_beside_a_plot_is_that_of_its_runs():
    """Figures are rounded once; rounding to hundredths first would give another last digit."""
    looked_at, wrong = 0, []
    for name, lines in tables():
        known = set(rows_of(results(name)))
        for line in lines:
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            looked_at += 1
            if not any(tuple(cells[start:]) in known for start in range(3)):
                wrong.append((name, line))
    assert looked_at > 90
    assert wrong == []


def test_the_readme_s_table_is_that_of_the_runs():
    lines = re.findall(r"^  \| .*[35] seeds.*\|$", (ROOT / "README.md").read_text(), re.M)
    assert len(lines) == len(ROWS)
    for name, line in zip(ROWS, lines, strict=True):
        content = results(name)
        without, distilled = content["comparisons"][:2]
        (teacher,) = (t for t in content["teachers"] if t["detector"] == without["detector"])
        found = distilled["difference"]
        ap = found["AP"]
        row = [
            str(distilled["budget"]),
            plain(teacher["scores"]["AP"]),
            *(plain(x["scores"]["AP"]["mean"]) for x in (without, distilled)),
            f"{signed(ap['mean'])} ({signed(ap['t_low'], ap['t_high'])}), {len(ap['each'])} seeds",
            signed(found["AP_S"]["mean"]),
        ]
        cells = [cell.strip() for cell in line.replace("*", "").strip(" |").split("|")]
        cells[-2] = cells[-2].split(":")[0]
        assert cells[-len(row) :] == row, name


def test_the_table_of_other_teachers_is_that_of_the_runs():
    part = (DOCS / "results.md").read_text().split("### Other teachers, all")[1].split("\n## ")[0]
    rows = [line.replace("*", "").strip("| ").split("|") for line in part.split("\n")]
    found = [[cell.strip() for cell in row][1:] for row in rows if len(row) == 5][2:]
    wanted = []
    for name, arms in (
        ("deeppcb_2400", ("drkd", "weight_3")),
        ("deeppcb_equal_channels", ("drkd",)),
        ("deeppcb_wide_teacher", ("drkd", "weight_3")),
        ("deeppcb_deep_teacher", ("drkd", "weight_3")),
        ("deeppcb_pretrained_teacher", ("drkd", "weight_3")),
    ):
        content = results(name)
        (teacher,) = content["teachers"]
        each = {c["arm"]: c["difference"]["AP"]["each"] for c in content["comparisons"][1:]}
        for arm in arms:
            wanted.append((plain(teacher["scores"]["AP"]), pairs(each[arm][:2])))
    assert [(row[0], row[-1]) for row in found] == wanted
