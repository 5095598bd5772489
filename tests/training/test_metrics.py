import json
import math

import jax
import jax.numpy as jnp
import pytest

from drkd_jax.errors import UserError
from drkd_jax.training.metrics import METRICS_FILE, CompilationCounter, Metrics, read_metrics


def write(folder, start, steps):
    metrics = Metrics(folder, start, 10)
    for step in steps:
        metrics.train(step, {"total": float(step)}, {"loss": "1"})
    metrics.close()


def test_lines_after_the_checkpoint_are_written_again_not_twice(tmp_path):
    write(tmp_path, 0, range(1, 8))
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"kind": "train", "st')  # what a kill leaves
    write(tmp_path, 5, range(6, 9))
    assert [line["step"] for line in read_metrics(tmp_path / METRICS_FILE)] == [*range(1, 9)]


def test_every_line_is_json_also_where_a_number_is_not_finite(tmp_path, capsys):
    metrics = Metrics(tmp_path, 0, 10)
    metrics.train(1, {"total": math.nan}, {"loss": "nan"})
    metrics.evaluation(1, {"AP": 0.5})
    metrics.warn(2, "something is silent")
    metrics.close()
    lines = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert lines[0] == {"kind": "train", "step": 1, "total": None}
    assert lines[1] == {"kind": "eval", "step": 1, "AP": 0.5}
    assert lines[2]["warning"] == "something is silent"
    assert metrics.warnings == ["something is silent"]
    assert "warning: step 2: something is silent" in capsys.readouterr().err
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_full_disk_is_told(tmp_path):
    metrics = Metrics(tmp_path, 0, 10)
    metrics._file = open("/dev/full", "w")  # noqa: SIM115
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written \(the disk is full\)"):
        metrics.warn(1, "something")


def test_a_process_that_is_not_the_first_writes_and_says_nothing(tmp_path, capsys):
    metrics = Metrics(tmp_path, 0, 10, silent=True)
    metrics.train(1, {"total": 1.0}, {"loss": "1"})
    metrics.evaluation(1, {"AP": 0.5})
    metrics.warn(1, "something")
    metrics.close()
    assert not any(tmp_path.iterdir())
    assert metrics.warnings == ["something"]
    assert capsys.readouterr().err == ""


def test_compilations_are_counted():
    double = jax.jit(lambda x: x * 2 + 1)
    with CompilationCounter() as counter:
        double(jnp.ones(3))
        once = counter.count
        double(jnp.zeros(3))
        assert counter.count - once <= 1  # jnp.zeros itself
        again = counter.count
        double(jnp.zeros(4))
        assert counter.count > again
    assert once >= 1
    seen = counter.count
    double(jnp.ones(5))
    assert counter.count == seen
