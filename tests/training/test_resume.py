"""Whatever ends a run, the same command continues from the last complete checkpoint."""

import json
import re
import resource
import signal
import time

from drkd_jax.monitoring.metrics import read_metrics
from drkd_jax.weights.ours import read_checkpoint
from tests.training import tiny
from tests.training.recipe import EVERY


def train(workdir, steps, *more):
    return tiny.python(
        "train.py",
        "--config=tests/training/recipe.py:plain",
        f"--workdir={workdir}",
        f"--config.train.steps={steps}",
        *more,
    )


def kept(workdir):
    """Steps of the complete checkpoints; leftovers of a refused write have another name."""
    names = [path.name for path in (workdir / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdigit())


def test_killed_at_any_moment_a_run_ends_bit_for_bit_as_if_nothing_had_been(tmp_path):
    # What the distiller adds is the same run's with 50 kills; here the start counts, five times.
    process = tiny.python(
        "benchmarks/kill.py", "2", "--plain", "--steps=6", f"--workdir={tmp_path / 'kill'}"
    )
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, out + err
    assert re.search(r"^2 kills in \d+ runs", out, re.MULTILINE), out
    assert "writing checkpoints" in out, out
    assert "the same, bit for bit" in out
    assert "\n0 differences" in out


def test_a_signal_then_a_full_disk_then_the_end(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    process = train(tmp_path, 5000, "--exit-code-interrupted=99")
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and read_metrics(metrics):
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 99, err
    reached = int(re.search(r"SIGTERM at step (\d+) of 5000: a checkpoint is written", err)[1])
    assert kept(tmp_path)[-1] == reached

    # The system refuses files over 64 KiB, so writing a checkpoint fails as on a full disk.
    process = tiny.python(
        "train.py",
        "--config=tests/training/recipe.py:plain",
        f"--workdir={tmp_path}",
        f"--config.train.steps={reached + 2}",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16)),
    )
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").rglob("*")}
    _, err = process.communicate(timeout=600)
    assert process.returncode == 2, err
    assert f"going on from step {reached}" in err
    # A thread of orbax may report the same write after it.
    (said,) = (line for line in err.splitlines() if line.startswith("error: "))
    refused = reached + 1 if (reached + 1) % EVERY == 0 else reached + 2  # the next, or the last
    assert f"step {refused} cannot be written (the file would be larger" in said
    assert "the checkpoints before it are whole" in said
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert kept(tmp_path)[-1] == reached

    process = train(tmp_path, reached + 2)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert f"going on from step {reached}" in err
    assert read_checkpoint(tmp_path, "last")[2] == reached + 2
    steps = [line["step"] for line in read_metrics(metrics) if line["kind"] == "train"]
    assert steps == list(range(1, reached + 3))
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == reached + 2
