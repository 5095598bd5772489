"""1 device and 4 devices: the same batch, the same losses, the same update.

The four processes run side by side: each mostly compiles.
"""

import json

import pytest

from tests.training import tiny

LOGGED = ("diag/", "learning_rate", "finite")


@pytest.fixture(scope="module")
def results():
    processes = {
        (detector, count): tiny.python(
            "-m",
            "tests.training.step_once",
            detector,
            XLA_FLAGS=f"--xla_force_host_platform_device_count={count}",
        )
        for detector in ("retinanet", "faster_rcnn")
        for count in (1, 4)
    }
    found = {}
    for key, process in processes.items():
        out, err = process.communicate(timeout=900)
        assert process.returncode == 0, err
        found[key] = json.loads(out.splitlines()[-1])
    return found


@pytest.mark.parametrize("detector", ["retinanet", "faster_rcnn"])
def test_one_device_and_four_give_the_same_losses(results, detector):
    one, four = results[detector, 1], results[detector, 4]
    assert (one["devices"], four["devices"]) == (1, 4)
    for step, (mine, theirs) in enumerate(zip(one["steps"], four["steps"], strict=True)):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            if not name.startswith(LOGGED):
                tolerance = 1e-5 if step == 0 else 1e-4
                assert theirs[name] == pytest.approx(value, rel=tolerance), (step, name)
    assert one["steps"][0]["total"] != one["steps"][1]["total"]
