"""Called by test_crosskd.py with 2 devices: errors of a spread batch's loss and gradients."""

from __future__ import annotations

import json

import jax

from drkd_jax.step.sharding import data_mesh, split
from tests.distill.baselines.test_crosskd import GIVEN, OF_STUDENT, OF_TEACHER, Module
from tests.distill.common import relative

if __name__ == "__main__":
    module, mesh = Module(), data_mesh()
    given = (OF_STUDENT, OF_TEACHER, GIVEN)
    (loss, _), alone = module(*given)
    (spread_loss, _), spread = module(*jax.device_put(given, split(mesh)))
    off = [relative(spread[i], alone[i]) for i in (0, 2)]  # by the student's maps and by f
    off.append(abs(float(spread_loss) / float(loss) - 1))
    print(json.dumps({"devices": mesh.size, "off": off}))
