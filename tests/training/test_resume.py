"""A killed run, started again by the same command, ends as one that was never killed."""

import json
import time

import numpy as np
import pytest

from drkd_jax.training.checkpoint import Checkpoints
from drkd_jax.training.metrics import read_metrics
from drkd_jax.training.setup import build_run
from drkd_jax.training.sharding import replicated
from drkd_jax.training.state import flatten
from tests.training import recipe, tiny

pytestmark = pytest.mark.usefixtures("quick_compile")

STEPS = 14


def start(workdir, steps=STEPS):
    return tiny.python(
        "train.py",
        "--config=tests/training/recipe.py",
        f"--workdir={workdir}",
        f"--config.train.steps={steps}",
    )


def finish(workdir):
    process = start(workdir)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return err


def kill_between_checkpoints(workdir):
    """Lets it pass a checkpoint and some steps more, then SIGKILL; the step it had reached."""
    # Longer than wanted, so that it cannot reach its end before the signal.
    process = start(workdir, steps=5000)
    path = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        lines = read_metrics(path) if path.exists() else []
        if lines and lines[-1]["step"] >= 6:
            process.kill()
            break
        time.sleep(0.002)
    _, err = process.communicate()
    assert process.returncode == -9, err
    return read_metrics(path)[-1]["step"]


def final_state(workdir):
    config = recipe.get_config().to_dict()
    config["train"]["steps"] = STEPS
    run = build_run(config)
    checkpoints = Checkpoints(workdir, 2)
    state = checkpoints.restore(run.state, replicated(run.mesh))
    position = checkpoints.about()["data"]
    checkpoints.close()
    return flatten(state), position


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    finish(workdir)
    return workdir


def test_killed_and_started_again_ends_bit_for_bit_the_same(whole, tmp_path):
    reached = kill_between_checkpoints(tmp_path)
    assert reached < STEPS, "this machine is too quick for the test"
    kept = sorted(int(path.name) for path in (tmp_path / "checkpoints").glob("[0-9]*"))
    assert kept[-1] <= reached
    said = finish(tmp_path)
    assert f"going on from step {kept[-1]}" in said

    (mine, position), (theirs, wanted) = final_state(tmp_path), final_state(whole)
    assert position == wanted
    assert mine.keys() == theirs.keys()
    assert any("distiller" in name for name in mine)
    assert int(mine["step"]) == STEPS
    for name in mine:
        np.testing.assert_array_equal(np.asarray(mine[name]), np.asarray(theirs[name]), name)

    lines, others = (read_metrics(folder / "metrics.jsonl") for folder in (tmp_path, whole))
    assert [line["step"] for line in lines] == [line["step"] for line in others]
    for line, other in zip(lines, others, strict=True):
        if line["kind"] == "train":
            assert line["total"] == other["total"]
    results = [json.loads((folder / "eval.json").read_text()) for folder in (tmp_path, whole)]
    assert results[0] == results[1]
