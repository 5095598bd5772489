"""On several devices no features are gathered, even for grouped and deformable convolutions."""

import json

from tests.training import tiny
from tests.training.gathered import gathered


def test_what_a_program_gathers_is_counted():
    text = """
  %all-gather = f32[8,4,2]{2,1,0} all-gather(%p), channel_id=1, dimensions={0}
  %start = (bf16[1,3], bf16[4,3]) all-gather-start(%q), dimensions={0}
  %x = f32[100] all-reduce(%all-gather)
"""
    assert gathered(text) == [256, 6, 24]


def test_a_step_on_four_devices_gathers_no_features():
    job = json.dumps({"job": ["retinanet", True]})
    process = tiny.python("-m", "tests.training.gathered", job, devices=4)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    # A map of the finest level has 8 x 24 x 24 x 16 numbers of 4 bytes.
    assert json.loads(out.splitlines()[-1])["job"] < 8 * 24 * 24 * 16 * 4
