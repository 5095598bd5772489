"""CPU time of a training step of the small models, alone or against another tree.

    python benchmarks/small_step.py [--against OTHER_TREE] [--cores 1] [--json FILE]

The models, sizes and batch of configs/folder.py on drawn images: both detectors, plain and
distilled by a teacher with random weights. Seconds are CPU time of the whole process, which other
work on the machine changes little; each tree runs in its own interpreter, and both alternate. A
ratio is the other tree's time over this one's: above 1, this one is faster. The first step's loss
and gradient norm are compared as well.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CASES = ("faster_rcnn student", "faster_rcnn drkd", "retinanet student", "retinanet drkd")
WARM = 3  # steps before the measured ones
HERE = Path(__file__).resolve().parents[1]


def measure(case: str, steps: int) -> dict[str, float]:
    """Times one case in this interpreter, with the tree of the current folder."""
    start = time.process_time()
    import jax

    import drkd_jax
    from configs import folder
    from drkd_jax.data.pipeline import train_loader
    from drkd_jax.training.setup import build_run

    detector, role = case.split()
    config = folder.get_config(f"{role}:{detector}")
    config.data.train, config.data.val = "shapes:64", "shapes:4:1"
    if role == "drkd":
        teacher = folder.get_config(f"teacher:{detector}").student
        config.teacher.update(teacher.to_dict())
        config.teacher.init = "random"
    run = build_run(config.to_dict())
    loader = train_loader(run.train_source, run.pipeline)
    batches = [run.put(next(loader)) for _ in range(4)]
    loader.close()
    built = time.process_time()
    lowered = run.step.lower(run.state, run.teacher_arrays, batches[0])  # type: ignore[attr-defined]
    traced = time.process_time()
    step = lowered.compile()
    compiled = time.process_time()
    state, first, cpu, wall = run.state, {}, [], []
    for i in range(WARM + steps):
        before, clock = time.process_time(), time.perf_counter()
        state, values = step(state, run.teacher_arrays, batches[i % len(batches)])
        jax.block_until_ready((state, values))
        cpu.append(time.process_time() - before)
        wall.append(time.perf_counter() - clock)
        first = first or values.to_dict()
    return {
        "step_ms": 1e3 * statistics.median(cpu[WARM:]),
        "wall_ms": 1e3 * min(wall[WARM:]),
        "start_s": built - start,
        "trace_s": traced - built,
        "compile_s": compiled - traced,
        "instructions": float(lowered.as_text().count("\n")),
        "package": drkd_jax.__file__,
        "loss": first["total"],
        "gradient_norm": first["gradient_norm"],
    }


def of_tree(tree: Path, case: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Runs one case with the package from a tree."""
    command = [sys.executable, str(Path(__file__).resolve()), "--alone", case]
    command += ["--steps", str(arguments.steps), "--cores", str(arguments.cores)]
    environment = {**os.environ, "PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, cwd=tree, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def row(case: str, own: dict[str, float], other: dict[str, float] | None) -> str:
    """A line of the table."""
    start = own["start_s"] + own["trace_s"] + own["compile_s"]
    line = f"{case:20} {own['step_ms']:8.1f} {own['wall_ms']:8.1f} {start:8.1f}"
    if other is None:
        return line
    before = other["start_s"] + other["trace_s"] + other["compile_s"]
    apart = (abs(own[key] / other[key] - 1) for key in ("loss", "gradient_norm"))
    return (
        f"{line} {other['step_ms']:8.1f} {other['wall_ms']:8.1f} {before:8.1f}"
        f" {other['step_ms'] / own['step_ms']:6.2f} {other['wall_ms'] / own['wall_ms']:6.2f}"
        f" {before / start:6.2f}  " + " ".join(f"{value:.0e}" for value in apart)
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--against", type=Path, help="another tree, or a --json file of one")
    parser.add_argument("--cases", default=",".join(CASES), help="of: " + ", ".join(CASES))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cores", type=int, default=0, help="0: all")
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.cores:
        # At its start, XLA creates as many threads as it may use cores.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    if arguments.alone:
        print(json.dumps(measure(arguments.alone, arguments.steps)))
        return
    stored: dict[str, Any] = {}
    if arguments.against and arguments.against.is_file():
        stored = json.loads(arguments.against.read_text())
    print(f"{'':20} {'CPU ms':>8} {'wall ms':>8} {'start s':>8}", end="")
    print("   the other tree's            ratios               loss, gradient apart")
    figures: dict[str, Any] = {}
    for case in arguments.cases.split(","):
        other = stored.get(case)
        if arguments.against and not stored:
            other = of_tree(arguments.against.resolve(), case, arguments)
        figures[case] = of_tree(HERE, case, arguments)
        print(row(case, figures[case], other), flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
