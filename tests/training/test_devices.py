"""1 device, 4 devices, 2 processes with 2 each: the same losses, scores and checkpoints.

Each process of a layout is started once and does all its tasks.
"""

import json
import re
import shutil
import signal
import socket
import time

import numpy as np
import pytest

from drkd_jax.data.sources import open_source
from drkd_jax.evaluation import coco_numbers
from drkd_jax.monitoring.metrics import read_metrics
from drkd_jax.weights.ours import read_checkpoint
from tests.training import tiny

# name: processes, devices of each, what it trains, how it continues a checkpoint of RetinaNet.
# Each form of the step occurs once per layout, since compiling takes most of this file's time.
LAYOUTS = {
    "1x1": (1, 1, ("retinanet|jit", "faster_rcnn given|jit"), "jit"),
    "1x4": (1, 4, ("faster_rcnn|jit",), "pmap"),
    "2x2": (2, 2, ("retinanet|jit", "faster_rcnn given|pmap"), "jit"),
}
NOT_LOSSES = ("diag/", "learning_rate", "finite")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The answers of each layout; the first one begins the run that all of them continue."""
    found = {}
    begun = tmp_path_factory.mktemp("begun") / "run"
    for name, (processes, devices, jobs, go_on) in LAYOUTS.items():
        folder = tmp_path_factory.mktemp(name)
        workdir, begins = folder / "run", not found
        if not begins:
            shutil.copytree(begun, workdir)
        port, started = _free_port(), []
        for index in range(processes):
            peers = {
                "coordinator": f"localhost:{port}",
                "num_processes": processes,
                "process_id": index,
            }
            arguments = {
                "peers": peers if processes > 1 else None,
                "begins": begins,
                "jobs": jobs,
                "checkpoint": str(begun),
                "workdir": str(workdir),
                "go_on": go_on,
                "answer": str(folder / f"answer{index}.json"),
            }
            started.append(
                tiny.python(
                    "-m",
                    "tests.training.layout",
                    json.dumps(arguments),
                    devices=devices,
                )
            )
        for process in started:
            _, err = process.communicate(timeout=900)
            assert process.returncode == 0, err
        answers = [
            json.loads((folder / f"answer{index}.json").read_text()) for index in range(processes)
        ]
        assert answers[0]["devices"] == processes * devices
        assert answers[0]["processes"] == processes
        for answer in answers[1:]:  # every process saw the same
            assert answer == answers[0]
        found[name] = (answers[0], workdir)
    return found


def drift(mine, theirs, start=""):
    """Largest relative difference of any loss or norm (with names starting so), by step."""
    largest = []
    for one, other in zip(mine, theirs, strict=True):
        assert one.keys() == other.keys()
        names = [name for name in one if not name.startswith(NOT_LOSSES)]
        names = [name for name in names if name.startswith(start)]
        largest.append(max(abs(one[name] / other[name] - 1) for name in names if other[name]))
    return largest


CASES = [(name, job) for name, (_, _, jobs, _) in LAYOUTS.items() for job in jobs if name != "1x1"]


@pytest.mark.parametrize(("name", "job"), CASES)
def test_every_layout_gives_the_losses_of_one_device(results, name, job):
    own_regions = job.startswith("faster_rcnn|")
    alone = results["1x1"][0]["steps"][
        "faster_rcnn given|jit" if own_regions else job.split("|")[0] + "|jit"
    ]
    here = results[name][0]["steps"][job]
    if own_regions:
        # An untrained RPN's regions have nearly equal scores: at a tie another one is drawn, and
        # from then on everything differs. Values that do not depend on them agree here; "given"
        # compares the others.
        assert drift(here, alone, "rpn_")[0] < 1e-5
    else:
        found = drift(here, alone)
        print(f"{name} {job}: " + " ".join(f"{value:.1e}" for value in found))
        assert max(found) < 1e-5
    assert alone[0]["total"] != alone[-1]["total"]


def test_every_layout_finds_the_same_in_every_image_once(results):
    alone = results["1x1"][0]["detections"]
    source = open_source(tiny.config()["data"]["val"])
    assert len({d["image_id"] for d in alone}) == len(source) == 6  # not a multiple of 4
    truth = source.coco_ground_truth() | {"annotations": _best_as_truth(alone)}
    wanted = coco_numbers(truth, alone)
    assert 0.1 < wanted["AP"] < 1
    for name in ("1x4", "2x2"):
        found = results[name][0]["detections"]
        assert len(found) == len(alone)
        for key in ("image_id", "category_id"):
            assert sorted(d[key] for d in found) == sorted(d[key] for d in alone)
        assert coco_numbers(truth, found) == wanted, name


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_checkpoint_of_one_layout_goes_on_in_another(results, name):
    _, alone = results["1x1"]
    _, workdir = results[name]
    lines, others = (
        [line for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "train"]
        for folder in (workdir, alone)
    )
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line, other in zip(lines, others, strict=True):
        np.testing.assert_allclose(line["total"], other["total"], rtol=1e-5)
    arrays, _, step = read_checkpoint(workdir, "last")
    wanted, _, _ = read_checkpoint(alone, "last")
    assert step == 6
    for key, array in arrays.items():
        np.testing.assert_allclose(array, wanted[key], rtol=1e-3, atol=1e-6, err_msg=key)


def test_a_signal_to_one_process_ends_all_at_the_same_step(tmp_path):
    port = _free_port()
    started = [
        tiny.python(
            "train.py",
            "--config=tests/training/recipe.py:plain",
            f"--workdir={tmp_path}",
            "--config.train.steps=5000",
            "--distributed",
            f"--coordinator=localhost:{port}",
            "--num-processes=2",
            f"--process-id={index}",
        )
        for index in range(2)
    ]
    metrics, deadline = tmp_path / "metrics.jsonl", time.monotonic() + 600
    while time.monotonic() < deadline and not (metrics.exists() and read_metrics(metrics)):
        time.sleep(0.05)
    started[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=600)[1] for process in started]
    assert [process.returncode for process in started] == [75, 75], said
    first, second = (re.search(r"(.*) at step (\d+) of 5000: a checkpoint", text) for text in said)
    assert first[1] == "asked to stop"
    assert second[1] == "SIGTERM"
    assert first[2] == second[2]
    assert read_checkpoint(tmp_path, "last")[2] == int(first[2])
    assert "step 1/5000" in said[0]
    assert "step 1/5000" not in said[1]


def _best_as_truth(found):
    """Ground truth with meaningful scores: some of the detections themselves."""
    chosen = sorted(found, key=lambda d: -d["score"])[::3][:60]
    return [
        {
            "id": number,
            "image_id": d["image_id"],
            "category_id": d["category_id"],
            "bbox": [d["bbox"][0] + number % 3, *d["bbox"][1:]],  # not quite the same place
            "area": d["bbox"][2] * d["bbox"][3],
            "iscrowd": 0,
        }
        for number, d in enumerate(chosen, 1)
    ]


def _free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
