"""1 device and 4 devices: the same batch, the same losses, the same update."""

import json

import pytest

from tests.training import tiny

LOGGED = ("diag/", "learning_rate", "finite")


@pytest.mark.parametrize("detector", ["retinanet", "faster_rcnn"])
def test_one_device_and_four_give_the_same_losses(detector):
    results = []
    for count in (1, 4):
        flags = f"--xla_force_host_platform_device_count={count}"
        process = tiny.python("-m", "tests.training.step_once", detector, XLA_FLAGS=flags)
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        results.append(json.loads(out.splitlines()[-1]))
    one, four = results
    assert (one["devices"], four["devices"]) == (1, 4)
    for step, (mine, theirs) in enumerate(zip(one["steps"], four["steps"], strict=True)):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            if not name.startswith(LOGGED):
                tolerance = 1e-5 if step == 0 else 1e-4
                assert theirs[name] == pytest.approx(value, rel=tolerance), (step, name)
    assert one["steps"][0]["total"] != one["steps"][1]["total"]
