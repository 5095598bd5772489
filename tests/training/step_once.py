"""Called by a test in a process of its own: the losses of the first steps, as JSON on stdout.

The number of devices is fixed before JAX starts, so each number needs its own process.
"""

from __future__ import annotations

import json
import sys

import jax

from drkd_jax.data.pipeline import train_loader
from drkd_jax.training.setup import build_run
from drkd_jax.training.sharding import put_batch
from tests.training import tiny


def main(detector: str) -> None:
    run = build_run(tiny.config(detector, distilled=detector == "retinanet"))
    loader = train_loader(run.train_source, run.pipeline)
    batch = put_batch(next(loader), run.mesh)
    state, steps = run.state, []
    for _ in range(2):
        state, values = run.step(state, run.teacher_arrays, batch)
        steps.append(values.to_dict())
    print(json.dumps({"devices": jax.device_count(), "steps": steps}))


if __name__ == "__main__":
    main(sys.argv[1])
