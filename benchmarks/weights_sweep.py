"""Searches the weight of each term of the distillation on a grid, one term at a time.

python benchmarks/weights_sweep.py --config=demo.py:drkd:faster_rcnn --teacher=DIR \
    --workdir=runs/sweep --steps=240 --seeds=3 \
    --grid pixel_relation=0.01,0.1,1 instance_relation=0.1,1,10 instance_feature=0.01,0.1,1

First trains plain students, one per seed: their spread shows which differences are significant.
Then a student for each term and weight with the other terms off (seed 0), then the combinations of
--combine (PIXEL,RELATION,FEATURE) for every seed. Each has its own work folder, and a finished one
is not trained again, so the command can be stopped and repeated, also with a longer grid.
Writes ``sweep.json`` and ``sweep.md`` into the work folder.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import statistics
import sys
from pathlib import Path
from typing import Any

TERMS = ("pixel_relation", "instance_relation", "instance_feature")


def recipe(name: str) -> dict[str, Any]:
    file, _, form = name.partition(":")
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    module = importlib.import_module("configs." + Path(file).stem)
    return module.get_config(form or None).to_dict()


def run(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    from drkd_jax.training.loop import train

    summary = folder / "summary.json"
    if not summary.exists():
        train(config, folder)
    numbers = json.loads(summary.read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if line["kind"] == "train"]
    late = logged[len(logged) // 2 :]
    shares = {
        term: statistics.mean(line[f"share/{term}"] for line in late)
        for term in TERMS
        if f"share/{term}" in late[-1]
    }
    return {"final": numbers["final"], "seconds": numbers["seconds"], "shares": shares}


def with_weights(base: dict[str, Any], weights: dict[str, float], seed: int) -> dict[str, Any]:
    config = copy.deepcopy(base)
    config["seed"] = seed
    for term in TERMS:
        if term in weights:
            config["distill"][term]["weight"] = weights[term]
        else:
            config["distill"][term] = None
    if not weights:
        config["distill"] = config["teacher"] = None
    return config


def jobs(options: argparse.Namespace) -> list[tuple[str, dict[str, float], int]]:
    found: list[tuple[str, dict[str, float], int]] = [
        (f"plain-{seed}", {}, seed) for seed in range(options.seeds)
    ]
    for entry in options.grid:
        term, _, values = entry.partition("=")
        if term not in TERMS:
            raise SystemExit(f"--grid {entry}: unknown term {term!r}; there are {', '.join(TERMS)}")
        found += [(f"{term}-{value}", {term: float(value)}, 0) for value in values.split(",")]
    for entry in options.combine:
        weights = dict(zip(TERMS, map(float, entry.split(",")), strict=True))
        found += [
            (f"all-{entry.replace(',', '-')}-{seed}", weights, seed)
            for seed in range(options.seeds)
        ]
    return found


def table(rows: list[dict[str, Any]]) -> str:
    plain = [row["final"]["AP"] for row in rows if not row["weights"]]
    middle = statistics.mean(plain)
    lines = [
        f"Plain students: AP {100 * middle:.2f} over {len(plain)} seeds, from "
        f"{100 * min(plain):.2f} to {100 * max(plain):.2f}.",
        "",
        "| weights | seed | share of the loss | AP | AP50 | AP_S | AP - plain of that seed |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    by_seed = {row["seed"]: row["final"]["AP"] for row in rows if not row["weights"]}
    for row in rows:
        weights = ", ".join(f"{term} {weight:g}" for term, weight in row["weights"].items())
        share = " / ".join(f"{value:.1%}" for value in row["shares"].values())
        final = row["final"]
        lines.append(
            f"| {weights or 'none'} | {row['seed']} | {share or '-'} | {100 * final['AP']:.2f} | "
            f"{100 * final['AP50']:.2f} | {100 * final['AP_S']:.2f} | "
            f"{100 * (final['AP'] - by_seed[row['seed']]):+.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="a recipe under configs/ with a distiller")
    parser.add_argument("--teacher", required=True, help="the teacher's work folder")
    parser.add_argument("--workdir", type=Path, default=Path("runs/sweep"))
    parser.add_argument("--steps", type=int, help="length of each run; the recipe's own otherwise")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--grid", nargs="*", default=[], metavar="TERM=W,W,..")
    parser.add_argument("--combine", nargs="*", default=[], metavar="PIXEL,RELATION,FEATURE")
    options = parser.parse_args()

    base = recipe(options.config)
    base["teacher"]["checkpoint"] = options.teacher
    if options.steps:
        base["train"]["steps"] = base["train"]["eval_every"] = options.steps
    rows: list[dict[str, Any]] = []
    for name, weights, seed in jobs(options):
        found = run(with_weights(base, weights, seed), options.workdir / name)
        rows.append({"name": name, "weights": weights, "seed": seed, **found})
        (options.workdir / "sweep.json").write_text(json.dumps(rows, indent=1) + "\n")
        (options.workdir / "sweep.md").write_text(table(rows))
        print(f"{name}: AP {100 * found['final']['AP']:.2f}", flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
