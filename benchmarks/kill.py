"""Kills a small run again and again, at random moments, and looks whether anything was lost.

python benchmarks/kill.py 50 --workdir=runs/kill

Each time SIGKILL takes the training process, and the same call starts it again, until the run is
through; then its last checkpoint, its log and its scores are compared, bit for bit, with those of
a run that nobody disturbed. A share of the kills waits for a checkpoint to be written and strikes
within that. Prints what was under way each time, and ends with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

# Programs for runs of a second are not worth XLA's effort.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import flags, logging

from configs import demo
from drkd_jax.training import loop
from drkd_jax.training.compilation_cache import keep_programs
from drkd_jax.training.metrics import METRICS_FILE, read_metrics

STEPS = 16
DIGESTS = "digests.json"
UNFINISHED = f"*{ocp.utils.TMP_DIR_SUFFIX}*"
PATIENCE = 600  # seconds without which a run counts as hung


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kills", type=int, nargs="?", default=50)
    parser.add_argument("--workdir", type=Path, default=Path("runs/kill"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--writing", type=float, default=0.5, help="share aimed at a write")
    parser.add_argument("--minutes", type=float, default=0.0, help="stop after so long; 0: never")
    options = parser.parse_args()
    flags.FLAGS.mark_as_parsed()
    logging.set_verbosity(logging.WARNING)
    shutil.rmtree(options.workdir, ignore_errors=True)
    options.workdir.mkdir(parents=True)
    config = recipe()
    began, rng = time.monotonic(), random.Random(options.seed)

    whole = options.workdir / "whole"
    run(config, whole, options.workdir).wait()
    undisturbed = run(config, options.workdir / "again", options.workdir)
    undisturbed.wait()  # with programs from the cache, as every sitting to come
    seconds = undisturbed.seconds
    print(f"undisturbed: {STEPS} steps, a sitting of {seconds:.1f} s", flush=True)

    moments: collections.Counter[str] = collections.Counter()
    runs, wrong = 0, []
    while sum(moments.values()) < options.kills:
        folder = options.workdir / f"run{runs}"
        while True:
            late = options.minutes and time.monotonic() - began > options.minutes * 60
            child = run(config, folder, options.workdir)
            left = 0 if late else options.kills - sum(moments.values())
            moment = strike(child, folder, rng, seconds, options.writing) if left else child.wait()
            if moment is None:
                break
            moments[moment] += 1
            print(f"kill {sum(moments.values())}: {moment}, {progress(folder)}", flush=True)
        runs += 1
        differing = compare(folder, whole)
        print(f"run {runs} ended: {'; '.join(differing) or 'the same, bit for bit'}", flush=True)
        wrong += differing
        if not differing:
            shutil.rmtree(folder)
        if late:
            break
    print(f"{sum(moments.values())} kills in {runs} runs: {dict(moments)}")
    print(f"{len(wrong)} differences; {time.monotonic() - began:.0f} s")
    return 1 if wrong else 0


def recipe() -> dict:
    """A distilled detector, small, that writes checkpoints most of its time."""
    config = demo.get_config("tiny")
    config.train.update(steps=STEPS, checkpoint_every=1, eval_every=5, keep=2)
    return config.to_dict()


class Child:
    """A training process that runs."""

    def __init__(self, process: int):
        self.process, self._began, self.seconds = process, time.monotonic(), 0.0

    def over(self) -> bool:
        """Whether it has ended by itself; anything but success is our fault."""
        process, status = os.waitpid(self.process, os.WNOHANG)
        if not process:
            if time.monotonic() - self._began > PATIENCE:
                self.kill()
                raise SystemExit("a run hangs")
            return False
        self.seconds = time.monotonic() - self._began
        if status:
            raise SystemExit(f"a run that nobody disturbed ended with {status}; see its said.txt")
        return True

    def wait(self) -> None:
        """Until its end."""
        while not self.over():
            time.sleep(0.01)

    def kill(self) -> None:
        """At once."""
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)


def run(config: dict, workdir: Path, common: Path) -> Child:
    """Starts a sitting: this process's twin, which has touched no device yet."""
    process = os.fork()
    if process:
        return Child(process)
    code = 1
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        said = os.open(workdir / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
            keep_programs(common / "programs")
        loop.train(config, workdir)
        (workdir / DIGESTS).write_text(json.dumps(digests(workdir)))
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(code)


def strike(
    child: Child, folder: Path, rng: random.Random, seconds: float, writing_share: float
) -> str | None:
    """Kills at a random moment; what was under way, or None where the run was quicker."""
    if rng.random() < writing_share:  # within the writing of one of the next checkpoints
        for _ in range(rng.randint(1, 6)):
            for wanted in (False, True):
                while bool(unfinished(folder)) != wanted:
                    if child.over():
                        return None
                    time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.05))
    else:
        end = time.monotonic() + rng.uniform(0, seconds)
        while time.monotonic() < end:
            if child.over():
                return None
            time.sleep(0.001)
    if child.over():
        return None
    child.kill()
    writing = unfinished(folder)
    if writing:
        return f"writing {writing[0].parent.name}"
    return "between" if (folder / METRICS_FILE).exists() else "at the start"


def unfinished(folder: Path) -> list[Path]:
    return [path for kind in ("checkpoints", "best") for path in (folder / kind).glob(UNFINISHED)]


def progress(folder: Path) -> str:
    names = [path.name for path in (folder / "checkpoints").glob("*")]
    kept = sorted(int(name) for name in names if name.isdigit())
    return f"checkpoints {kept}"


def compare(folder: Path, whole: Path) -> list[str]:
    """What of a run differs from the undisturbed one."""
    mine, theirs = (json.loads((place / DIGESTS).read_text()) for place in (folder, whole))
    wrong = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
    lines, others = (read_metrics(place / METRICS_FILE) for place in (folder, whole))
    timed = ("pictures_per_second", "data_wait", "loader_rate")
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


def digests(folder: Path) -> dict[str, str]:
    """A digest of every array of the last checkpoint."""
    found = {}
    with ocp.StandardCheckpointer() as checkpointer:
        for item in ("student", "training"):
            tree = checkpointer.restore((folder / "checkpoints" / str(STEPS) / item).absolute())
            for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
                array = np.asarray(leaf)
                words = f"{array.dtype} {array.shape}".encode() + array.tobytes()
                found[item + jax.tree_util.keystr(path)] = hashlib.sha256(words).hexdigest()
    return found


if __name__ == "__main__":
    sys.exit(main())
