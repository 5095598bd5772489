"""Kills a small run repeatedly, at random moments, and checks whether anything was lost.

python benchmarks/kill.py 50 --workdir=runs/kill

SIGKILL ends the training process each time, and the same call starts it again, until the run is
finished. Then its last checkpoint, log and scores are compared bit for bit with those of an
undisturbed run. Every kill waits for one to four new steps of its run, so that kills spread over
the whole run at any speed of the machine: half of them hit the next write of a checkpoint, the
others any moment after the step, except that one in ten hits the start of the process. Prints what
was under way each time; the exit code is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Optimising programs does not pay for runs of a second.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import flags, logging

# Tests the checkout of this file.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs import demo
from drkd_jax.monitoring.metrics import METRICS_FILE, read_metrics
from drkd_jax.training import loop
from drkd_jax.training.setup import keep_programs

REACH = 4  # maximum number of new steps that a kill waits for
DIGESTS = "digests.json"
UNFINISHED = f"*{ocp.utils.TMP_DIR_SUFFIX}*"
EVAL_EVERY = 5
KINDS = (*("write", "step") * 4, "write", "start")
PATIENCE = 600  # seconds after which a run counts as hung


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kills", type=int, nargs="?", default=50)
    parser.add_argument("--workdir", type=Path, default=Path("runs/kill"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=16, help="of a run")
    parser.add_argument("--plain", action="store_true", help="without distillation: quicker starts")
    parser.add_argument("--minutes", type=float, default=0.0, help="stop after so long; 0: never")
    options = parser.parse_args()
    flags.FLAGS.mark_as_parsed()
    logging.set_verbosity(logging.WARNING)
    shutil.rmtree(options.workdir, ignore_errors=True)
    options.workdir.mkdir(parents=True)
    config = recipe(options.steps, options.plain)
    began, rng = time.monotonic(), random.Random(options.seed)

    whole = options.workdir / "whole"
    child = run(config, whole, options.workdir)
    pace = Pace(child, whole)
    print(
        f"undisturbed: {options.steps} steps in {child.seconds:.1f} s, {pace.start:.1f} s of them "
        f"to the first, {pace.write:.2f} s a checkpoint",
        flush=True,
    )

    moments: collections.Counter[str] = collections.Counter()
    at: collections.Counter[int] = collections.Counter()
    runs, wrong = 0, []
    while sum(moments.values()) < options.kills:
        folder, reached = options.workdir / f"run{runs}", 0
        while True:
            done = sum(moments.values())
            late = options.minutes and time.monotonic() - began > options.minutes * 60
            child = run(config, folder, options.workdir)
            if late or done == options.kills or reached == options.steps:
                child.wait()
                break
            target = min(reached + rng.randint(1, REACH), options.steps)
            moment = strike(child, folder, rng, KINDS[done % len(KINDS)], target, pace)
            if moment is None:
                break
            reached = max(reached, logged(folder))
            moments[moment] += 1
            at[reached] += 1
            print(f"kill {done + 1}: {moment}, step {reached}, {progress(folder)}", flush=True)
        runs += 1
        differing = compare(folder, whole)
        print(f"run {runs} ended: {'; '.join(differing) or 'the same, bit for bit'}", flush=True)
        wrong += differing
        if not differing:
            shutil.rmtree(folder)
        if late:
            break
    print(f"{sum(moments.values())} kills in {runs} runs: {dict(moments)}")
    print(f"by step reached: {dict(sorted(at.items()))}")
    print(f"{len(wrong)} differences; {time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


def recipe(steps: int, plain: bool) -> dict:
    """A small detector, distilled unless plain, that often writes checkpoints."""
    config = demo.get_config("tiny")
    config.train.update(steps=steps, checkpoint_every=2, log_every=1, eval_every=EVAL_EVERY, keep=2)
    if plain:
        config.teacher = config.distill = None
    return config.to_dict()


class Pace:
    """How long an undisturbed run takes for its first step, and to write a checkpoint.

    Args:
        child: the run; ended afterwards.
        folder: its work folder.
    """

    def __init__(self, child: Child, folder: Path):
        self.start, writes, since = 0.0, [], 0.0
        while not child.over():
            now = time.monotonic()
            if not self.start and logged(folder):
                self.start = now - child.began
            if bool(since) != bool(unfinished(folder)):
                writes += [now - since] if since else []
                since = 0.0 if since else now
            time.sleep(0.002)
        self.write = statistics.median(writes)


class Child:
    """A running training process."""

    def __init__(self, process: int):
        self.process, self.began, self.seconds = process, time.monotonic(), 0.0

    def over(self) -> bool:
        """Whether it has ended by itself; a failure or a hang ends this program."""
        process, status = os.waitpid(self.process, os.WNOHANG)
        if not process:
            if time.monotonic() - self.began > PATIENCE:
                self.kill()
                raise SystemExit("a run hangs")
            return False
        self.seconds = time.monotonic() - self.began
        if status:
            raise SystemExit(f"a run that nobody disturbed ended with {status}; see its said.txt")
        return True

    def wait(self) -> None:
        """Waits for its end."""
        while not self.over():
            time.sleep(0.01)

    def kill(self) -> None:
        """Kills it at once."""
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)


def run(config: dict, workdir: Path, common: Path) -> Child:
    """Starts a training in a fork of this process, which has used no device yet."""
    process = os.fork()
    if process:
        return Child(process)
    code = 1
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        said = os.open(workdir / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        keep_programs(os.environ.get("JAX_COMPILATION_CACHE_DIR") or common / "programs")
        loop.train(config, workdir)
        (workdir / DIGESTS).write_text(json.dumps(digests(workdir, config["train"]["steps"])))
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(code)


def strike(
    child: Child, folder: Path, rng: random.Random, kind: str, target: int, pace: Pace
) -> str | None:
    """Kills at a random moment of a kind; returns what was under way, None if the run had ended.

    Args:
        child: the process.
        folder: its work folder.
        rng: draws the moment.
        kind: one of `KINDS`.
        target: the step to wait for, unless the kind is "start".
        pace: pace of an undisturbed run.
    """
    if kind == "start":
        delay = rng.uniform(0, pace.start)
    else:
        if not until(child, lambda: logged(folder) >= target):
            return None
        delay = rng.uniform(0, 2 * pace.write)
        if kind == "write":
            # Waits for the end of a current write, to meet the next one from its start.
            if not until(child, lambda: not unfinished(folder)):
                return None
            if not until(child, lambda: bool(unfinished(folder))):
                return None
            delay *= 0.35
    end = time.monotonic() + delay
    if not until(child, lambda: time.monotonic() >= end):
        return None
    child.kill()
    if kind == "start":  # an unfinished write may be left from the kill before
        return "at the start"
    writing = unfinished(folder)
    if writing:
        return f"writing {writing[0].parent.name}"
    step = logged(folder)
    due = step % EVAL_EVERY == 0 and logged(folder, "eval") != step
    return "evaluating" if due else "between"


def until(child: Child, reached: Callable[[], bool]) -> bool:
    """Waits for a condition; False if the process ended before."""
    while not child.over():
        if reached():
            return True
        time.sleep(0.001)
    return False


def logged(folder: Path, kind: str = "train") -> int:
    """The last step in a run's log, among lines of one kind."""
    try:
        lines = (folder / METRICS_FILE).read_text().splitlines()
    except FileNotFoundError:
        return 0
    steps = [0]
    for line in lines:
        with contextlib.suppress(ValueError, KeyError):  # a half-written line
            entry = json.loads(line)
            steps += [entry["step"]] if entry["kind"] == kind else []
    return max(steps)


def unfinished(folder: Path) -> list[Path]:
    return [path for kind in ("checkpoints", "best") for path in (folder / kind).glob(UNFINISHED)]


def progress(folder: Path) -> str:
    names = [path.name for path in (folder / "checkpoints").glob("*")]
    kept = sorted(int(name) for name in names if name.isdigit())
    return f"checkpoints {kept}"


def compare(folder: Path, whole: Path) -> list[str]:
    """The differences of a run from the undisturbed one."""
    mine, theirs = (json.loads((place / DIGESTS).read_text()) for place in (folder, whole))
    wrong = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
    lines, others = (read_metrics(place / METRICS_FILE) for place in (folder, whole))
    timed = ("images_per_second", "data_wait", "loader_rate")
    for line in (*lines, *others):
        for name in timed:
            line.pop(name, None)
    if [x for x in lines if x["kind"] != "warning"] != [
        x for x in others if x["kind"] != "warning"
    ]:
        wrong.append(METRICS_FILE)
    for name in ("eval.json", "detections.json"):
        if (folder / name).read_bytes() != (whole / name).read_bytes():
            wrong.append(name)
    best = [json.loads((place / "summary.json").read_text()) for place in (folder, whole)]
    wrong += [
        f"summary {key}" for key in ("final", "best", "best_step") if best[0][key] != best[1][key]
    ]
    return wrong


def digests(folder: Path, last: int) -> dict[str, str]:
    """A digest of each array of the last checkpoint."""
    found = {}
    with ocp.StandardCheckpointer() as checkpointer:
        for item in ("student", "training"):
            tree = checkpointer.restore((folder / "checkpoints" / str(last) / item).absolute())
            for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
                array = np.asarray(leaf)
                words = f"{array.dtype} {array.shape}".encode() + array.tobytes()
                found[item + jax.tree_util.keystr(path)] = hashlib.sha256(words).hexdigest()
    return found


if __name__ == "__main__":
    sys.exit(main())
