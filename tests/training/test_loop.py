"""Many checks of one distilled run over both canvases; two more runs use its programs."""

import dataclasses
import json
import signal
import threading
import time
from unittest import mock

import jax
import numpy as np
import pytest

from drkd_jax.data.sources import open_source
from drkd_jax.errors import UserError
from drkd_jax.fault_tolerance.interrupt import InterruptedRunError, NonFiniteError
from drkd_jax.monitoring.metrics import read_metrics
from drkd_jax.step.settings import train_settings
from drkd_jax.step.sharding import put_batch, put_everywhere
from drkd_jax.step.train_step import StepValues
from drkd_jax.training import loop
from drkd_jax.training.setup import build_run
from drkd_jax.weights.opening import load
from tests.training import tiny
from tests.training.compilations import CompilationCounter

TERMS = ("pixel_relation", "instance_relation", "instance_feature")


@pytest.fixture(scope="module")
def built():
    """A run that is compiled once, and its initial state."""
    config = tiny.config(distilled=True)
    run = build_run(config)
    return config, run, jax.device_get(run.state)


def on_its_programs(built):
    """Replaces `build_run`: runs of another length, with the initial state of the built one."""
    _, run, state = built

    def build(config):
        return dataclasses.replace(
            run,
            config=config,
            train=train_settings(config["train"]),
            steps=config["train"]["steps"],
            state=put_everywhere(state, run.mesh),
        )

    return build


@pytest.fixture(scope="module")
def finished(built, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    with mock.patch.object(loop, "build_run", on_its_programs(built)):
        return built[0], workdir, loop.train(built[0], workdir)


@pytest.fixture
def compiled(built, monkeypatch):
    """Runs of other lengths with the programs compiled once; their learning rate is the first's."""
    monkeypatch.setattr(loop, "build_run", on_its_programs(built))


def test_a_work_folder_holds_all_that_a_run_leaves(finished):
    config, workdir, summary = finished
    names = {path.name for path in workdir.iterdir()}
    assert names == {
        "best",
        "checkpoints",
        "config.json",
        "detections.json",
        "eval.json",
        "lock",
        "metrics.jsonl",
        "summary.json",
        "tensorboard",
    }
    assert json.loads((workdir / "summary.json").read_text()) == summary
    assert json.loads((workdir / "config.json").read_text())["seed"] == config["seed"]
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["6", "8"]
    assert summary["steps"] == 8
    assert summary["best_step"] == 8
    assert json.loads((workdir / "eval.json").read_text())["AP"] == summary["final"]["AP"]


def test_every_term_its_weight_and_its_share_are_logged_at_every_log_step(finished):
    _, workdir, _ = finished
    lines = [line for line in read_metrics(workdir / "metrics.jsonl") if line["kind"] == "train"]
    assert [line["step"] for line in lines] == list(range(1, 9))
    for line in lines:
        weighted = [line[f"weight/{term}"] * line[f"distill/{term}"] for term in TERMS]
        total = line["cls_loss"] + line["box_loss"] + sum(weighted)
        np.testing.assert_allclose(line["total"], total, rtol=1e-6)
        for term, part in zip(TERMS, weighted, strict=True):
            assert part > 0
            np.testing.assert_allclose(line[f"share/{term}"], part / line["total"], rtol=1e-9)
    rates = [line["learning_rate"] for line in lines]
    np.testing.assert_allclose(
        rates, 0.01 * np.array([0.1, 0.4, 0.7, 1, 1, 1, 0.1, 0.1]), rtol=1e-5
    )


def test_a_finished_run_is_not_trained_again(finished):
    config, workdir, summary = finished
    before = (workdir / "metrics.jsonl").read_text()
    again = loop.train(config, workdir)
    assert again["final"] == summary["final"]
    assert again["seconds"] > 0.5 * summary["seconds"]  # of all sessions, not only of the last one
    assert (workdir / "metrics.jsonl").read_text() == before


def test_a_changed_config_does_not_continue_it(finished):
    config, workdir, _ = finished
    with pytest.raises(UserError, match=r"train\.momentum"):
        loop.train(tiny.config(distilled=True, momentum=0.5), workdir)
    assert json.loads((workdir / "config.json").read_text())["train"] == json.loads(
        json.dumps(config["train"])
    )


def test_a_work_folder_that_is_a_file_is_told(finished, tmp_path):
    config, _, _ = finished
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/below"):
        with pytest.raises(
            UserError, match=r"cannot be written \((there is a file|a part of the path)"
        ):
            loop.train(config, tmp_path / place)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.usefixtures("compiled")
def test_a_trace_and_the_gradients_of_some_steps_are_written(finished, tmp_path, monkeypatch):
    config, _, _ = finished
    config = {**config, "train": {**config["train"], "log_gradients": 4}}
    build, name = loop.build_run, "gradient/detection/backbone"

    def report(state, *_):  # a stand-in that is not compiled: test_gradients.py has the real one
        return StepValues(np.array([state.step], np.float32), (name,))

    monkeypatch.setattr(
        loop, "build_run", lambda given: dataclasses.replace(build(given), gradients=report)
    )
    loop.train(config, tmp_path, profile="2:4")
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if name in line]
    assert [(line["step"], line[name]) for line in lines] == [(4, 3.0), (8, 7.0)]


def test_the_student_alone_is_what_others_load(finished):
    _, workdir, _ = finished
    last, detector = load(workdir, which="last"), load(workdir).detector()
    assert last.step == 8
    assert not any("distiller" in name or "pixel_relation" in name for name in last.arrays)
    assert last.config["student"]["channels"] == 16
    np.testing.assert_array_equal(
        detector.neck.spec.channels, (16,) * len(detector.neck.spec.channels)
    )


def test_after_warm_up_nothing_compiles_again(finished, built):
    """The run before this test has compiled one program per canvas, and no more are compiled."""
    config, run, _ = built
    assert run.step._cache_size() == 2
    batches = _batches(run, 9)
    assert len({batch.images.shape for batch in batches}) == 2
    state = on_its_programs(built)(config).state
    with CompilationCounter() as counter:
        for batch in batches:
            state, values = run.step(state, run.teacher_arrays, put_batch(batch, run.mesh))
            values.to_dict()
    assert counter.count == 0
    assert run.step._cache_size() == 2
    # The teacher is an argument, and stays what it was.
    untouched = build_run(config).teacher_arrays
    for mine, theirs in zip(
        jax.tree.leaves(run.teacher_arrays), jax.tree.leaves(untouched), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.usefixtures("compiled")
def test_a_loss_that_is_not_finite_stops_with_step_term_and_images(finished, tmp_path, monkeypatch):
    config, _, _ = finished
    seen = []

    runs = []
    build = loop.build_run
    monkeypatch.setattr(loop, "build_run", lambda c: runs.append(build(c)) or runs[0])

    class Poisoned:
        """The real loader; with the 5th batch the teacher's arrays are lost."""

        def __init__(self, loader):
            self.loader = loader

        def __next__(self):
            batch = next(self.loader)
            seen.append(batch)
            if len(seen) == 5:
                arrays = runs[0].teacher_arrays
                runs[0].teacher_arrays = jax.tree.map(lambda x: x * np.nan, arrays)
            return batch

        def __getattr__(self, name):
            return getattr(self.loader, name)

    real = loop.train_loader
    monkeypatch.setattr(loop, "train_loader", lambda *a, **k: Poisoned(real(*a, **k)))
    # Logged rarely: it must not need a log step to notice.
    config = {**config, "train": {**config["train"], "log_every": 100}}
    with pytest.raises(NonFiniteError) as error:
        loop.train(config, tmp_path)
    message = str(error.value)
    source = open_source(config["data"]["train"])
    ids = [source.meta(int(i)).image_id for i in seen[4].index if i >= 0]
    assert "not finite at step 5: " in message
    named = message.split("not finite at step 5: ")[1].split("; images [")[0].split(", ")
    assert sorted(named) == ["instance_feature", "instance_relation", "pixel_relation"]
    assert str(ids) in message
    assert "the checkpoint of step 3 is good" in message
    last = load(tmp_path, which="last")
    assert last.step == 3
    assert all(np.isfinite(array).all() for array in last.arrays.values())


@pytest.mark.usefixtures("compiled")
def test_a_signal_ends_the_run_with_a_checkpoint_at_its_step(finished, tmp_path):
    config, _, _ = finished
    metrics = tmp_path / "metrics.jsonl"

    def interrupt():
        while not (metrics.exists() and read_metrics(metrics)):
            time.sleep(0.005)
        signal.raise_signal(signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(InterruptedRunError, match=r"SIGTERM at step \d+ of 5000: a checkpoint"):
        loop.train({**config, "train": {**config["train"], "steps": 5000}}, tmp_path)
    thread.join()
    last = load(tmp_path, which="last")
    assert 1 <= last.step < 5000
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert all(np.isfinite(array).all() for array in last.arrays.values())


@pytest.mark.usefixtures("compiled")
def test_a_signal_before_the_first_step_or_in_an_evaluation_loses_nothing(
    finished, tmp_path, monkeypatch
):
    config, workdir, _ = finished
    config = {**config, "train": {**config["train"], "steps": 2, "eval_every": 1, "decay_at": ()}}
    build = loop.build_run

    def early(values):
        signal.raise_signal(signal.SIGTERM)
        return build(values)

    monkeypatch.setattr(loop, "build_run", early)
    with pytest.raises(InterruptedRunError, match="SIGTERM before the first step: nothing to save"):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()

    monkeypatch.setattr(loop, "build_run", build)
    whole = loop.evaluate

    def cut(*arguments, stop, **others):
        return whole(*arguments, stop=lambda: signal.raise_signal(15) or stop(), **others)

    monkeypatch.setattr(loop, "evaluate", cut)
    with pytest.raises(InterruptedRunError, match="SIGTERM at step 1 of 2: a checkpoint is writt"):
        loop.train(config, tmp_path / "run")
    monkeypatch.setattr(loop, "evaluate", whole)
    loop.train(config, tmp_path / "run")
    lines, others = (
        [line for line in read_metrics(place / "metrics.jsonl") if line["kind"] == "train"][:2]
        for place in (tmp_path / "run", workdir)
    )
    for name in TERMS:
        name = f"distill/{name}"
        assert [line[name] for line in lines] == [line[name] for line in others]
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    kinds = [(line["kind"], line["step"]) for line in lines if line["kind"] != "warning"]
    assert kinds == [("train", 1), ("eval", 1), ("train", 2), ("eval", 2)]


def scored(aps):
    """Replaces `evaluate`: each call returns the next AP, and one box per image."""
    found = [
        {"image_id": i, "category_id": 1, "bbox": [1.0, 2.0, 9.0, 9.0], "score": 0.5}
        for i in range(6)
    ]
    return lambda *_, **__: ({"AP": next(aps)}, found)


@pytest.mark.usefixtures("compiled")
def test_a_run_that_gets_no_better_ends_early_and_stays_ended(
    finished, tmp_path, monkeypatch, capsys
):
    config, workdir, _ = finished

    def trained(folder, aps, **settings):
        monkeypatch.setattr(loop, "evaluate", scored(iter(aps)))
        settings = {"eval_every": 1, "log_every": 3, "early_stop": 2} | settings
        return loop.train({**config, "train": {**config["train"], **settings}}, folder)

    summary = trained(tmp_path, [0.1, 0.3, 0.3, 0.2], tensorboard_images=2)
    why = "stopped early at step 4 of 8: no better AP in 2 evaluations since step 2"
    assert summary["ended"].startswith(why)
    assert (summary["steps"], summary["best_step"]) == (4, 2)
    assert summary["best"] == {"AP": 0.3}
    assert summary["final"] == {"AP": 0.2}
    assert [load(tmp_path, which=which).step for which in ("best", "last")] == [2, 4]
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    logged = [line["step"] for line in metrics if line["kind"] == "train"]
    assert logged == [3, 4]  # the open window too
    events = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    shown = [i for i in range(6) if open_source("shapes:6:1").meta(i).num_boxes][:2]
    assert [events.count(b"images/%05d" % i) for i in shown] == [4, 4]
    assert events.count(b"images/") == 8
    assert why in capsys.readouterr().err

    again = trained(tmp_path, [])
    assert again["ended"] == summary["ended"]
    assert f"this run is finished: {why}" in capsys.readouterr().err
    assert read_metrics(tmp_path / "metrics.jsonl") == metrics

    # With more patience it goes on, as if it had not been stopped.
    longer = trained(tmp_path, [0.31, 0.4, 0.1, 0.1], early_stop=3, log_every=1)
    assert (longer["steps"], longer["best_step"], longer["ended"]) == (8, 6, "8 steps are done")
    mine, whole = (load(place, which="last").arrays for place in (tmp_path, workdir))
    for name, array in whole.items():
        np.testing.assert_array_equal(mine[name], array)


def _batches(run, count):
    loader = loop.train_loader(run.train_source, run.pipeline)
    return [next(loader) for _ in range(count)]
