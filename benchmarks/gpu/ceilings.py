"""The best rates of this device: a large copy and large products.

python -m benchmarks.gpu.ceilings RESULT.json [SIZE]
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp


def seconds(function: Callable[..., Any], *arguments: Any) -> float:
    """Median of ten calls, after three to warm up."""
    times = []
    for _ in range(13):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


def main(sink: str, size: str = "8192") -> None:
    n = int(size)
    keys = jax.random.split(jax.random.key(0))
    left, right = (jax.random.normal(key, (n, n), jnp.float32) for key in keys)
    found: dict[str, Any] = {"device": jax.devices()[0].device_kind, "size": n}
    # Reads and writes each number once; in 16 bits, twice as many of them.
    twice = jnp.concatenate([left, right] * 2).astype(jnp.bfloat16)
    found["copy_tb_per_s"] = 2 * twice.nbytes / seconds(jax.jit(lambda x: -x), twice) / 1e12
    for name, dtype, precision in (
        ("bfloat16", jnp.bfloat16, "default"),
        ("float32 as default", jnp.float32, "default"),
        ("float32 at highest", jnp.float32, "highest"),
    ):
        product = jax.jit(lambda a, b, p=precision: jnp.matmul(a, b, precision=p))
        time_taken = seconds(product, left.astype(dtype), right.astype(dtype))
        found[f"{name}, tflop_per_s"] = 2 * n**3 / time_taken / 1e12
    Path(sink).write_text(json.dumps(found, indent=1))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
