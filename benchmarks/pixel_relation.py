"""The pixel relation, plain against Gram form, per level: time, memory, FLOPs, error.

    python benchmarks/pixel_relation.py [--levels P2,P3] [--dtype bfloat16] [--teacher trained]
        [--compare values]

Maps of an 800x1344 canvas, 256 channels, 64/64/256/256/256 nodes, forward and backward with respect
to the student's map and the trained modules (the teacher's are frozen by default). Memory is that
of the compiled program without its arguments and results. The error is each form's difference from
the plain form in float64, in relative norm; --no-error leaves it out.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from drkd_jax.distill.config import PixelRelationConfig
from drkd_jax.distill.pairing import LevelPair
from drkd_jax.distill.pixel_relation import PixelRelation
from drkd_jax.types import FeatureSpec

CANVAS = 800, 1344
NODES = {"P2": 64, "P3": 64, "P4": 256, "P5": 256, "P6": 256}
STRIDES = {"P2": 4, "P3": 8, "P4": 16, "P5": 32, "P6": 64}


def flops(form: str, nodes: int, arguments: argparse.Namespace, pixels: int) -> float:
    """Multiplications and additions that grow with the pixels, forward and backward.

    Counted from the formulas, since the compiler counts a loop's body only once. Plain: a unit's
    forward is 5 m C + 4 m^2 per pixel (states, projection, nodes, way back, extension), f is
    C^2; backward is twice the forward for a trained unit, 0 for a frozen teacher's. Gram:
    3/4 + 1 + 3/4 blocks of C^2 forward, two backward.
    """
    wide = arguments.channels
    unit = 5 * nodes * wide + 4 * nodes**2
    if form == "gram":
        products = 4.5 * wide**2
    else:
        teacher = 3 if arguments.teacher == "trained" else 1
        products = (3 + teacher) * unit + 3 * wide**2
    return 2.0 * products * pixels * arguments.batch


def make(level: str, arithmetic: str, arguments: argparse.Namespace) -> PixelRelation:
    channels = arguments.channels
    stride = STRIDES[level]
    spec = FeatureSpec((channels,), (stride,), ("lateral",))
    config = PixelRelationConfig(
        nodes=(NODES[level],),
        arithmetic=arithmetic,
        teacher_modules=arguments.teacher,
        compare=arguments.compare,
    )
    pairs = (LevelPair(0, 0, stride),)
    return PixelRelation(config, pairs, spec, spec, rngs=nnx.Rngs(0))


def step(term: PixelRelation, dtype: Any) -> tuple[Callable[..., Any], tuple[Any, Any]]:
    """A jitted value-and-gradient function, and the module's state in `dtype`."""
    frozen = term.config.teacher_modules == "frozen"
    trained = nnx.All(nnx.Param, lambda path, _: path[0] != "teacher" or not frozen)
    graph, params, rest = nnx.split(term, trained, ...)
    params, rest = jax.tree.map(lambda x: x.astype(dtype), (params, rest))

    def loss(params: Any, rest: Any, s: jax.Array, t: jax.Array, mask: jax.Array) -> jax.Array:
        module = nnx.merge(graph, params, rest, copy=True)
        return module((s,), (t,), (mask,))[0]

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 2))), (params, rest)


def relative(found: Any, wanted: Any) -> float:
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    off = size = 0.0
    for a, b in pairs:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        off, size = off + ((a - b) ** 2).sum(), size + (b**2).sum()
    return float(np.sqrt(off / max(size, 1e-300)))


def measure(level: str, arguments: argparse.Namespace) -> dict[str, Any]:
    stride = STRIDES[level]
    shape = (arguments.batch, -(-CANVAS[0] // stride), -(-CANVAS[1] // stride), arguments.channels)
    random = np.random.default_rng(0)
    s, t = (random.standard_normal(shape, np.float32) for _ in range(2))
    mask = np.ones(shape[:3], bool)
    mask[:, :, int(0.9 * shape[2]) :] = False  # an image seldom fills its canvas
    s, t = (jnp.asarray(x).astype(arguments.dtype) for x in (s, t))
    row: dict[str, Any] = {"level": level, "pixels": shape[1] * shape[2]}
    answers: dict[str, Any] = {}
    programs = {}
    for form in ("plain", "gram"):
        function, state = step(make(level, form, arguments), jnp.float32)
        compiled = function.lower(*state, s, t, mask).compile()
        row[f"{form}_mib"] = compiled.memory_analysis().temp_size_in_bytes / 2**20
        row[f"{form}_gflop"] = flops(form, NODES[level], arguments, shape[1] * shape[2]) / 1e9
        answers[form] = jax.tree.map(np.asarray, compiled(*state, s, t, mask))
        programs[form] = compiled, state
    times: dict[str, list[float]] = {form: [] for form in programs}
    for _ in range(arguments.repeat):  # alternating, so that a busy machine slows both
        for form, (compiled, state) in programs.items():
            # A first call, as the other form's left cold caches and released memory.
            for _ in range(2):
                start = time.perf_counter()
                jax.block_until_ready(compiled(*state, s, t, mask))
                last = time.perf_counter() - start
            times[form].append(last)
    row |= {f"{form}_ms": 1e3 * min(found) for form, found in times.items()}
    if not arguments.no_error:
        with jax.enable_x64(True):
            function, state = step(make(level, "plain", arguments), jnp.float64)
            state = jax.tree.map(  # the same initial values in each precision
                lambda wide, narrow: jnp.asarray(np.asarray(narrow), wide.dtype),
                state,
                arguments.start[level],
            )
            maps = (jnp.asarray(np.asarray(x, np.float64)) for x in (s, t))
            exact = jax.tree.map(np.asarray, function(*state, *maps, mask))
        for form, answer in answers.items():
            row[f"{form}_loss_error"] = relative(answer[0], exact[0])
            row[f"{form}_gradient_error"] = relative(answer[1][1], exact[1][1])
            row[f"{form}_parameter_error"] = relative(answer[1][0], exact[1][0])
    for what in ("ms", "mib", "gflop"):
        row[f"{what}_ratio"] = row[f"plain_{what}"] / row[f"gram_{what}"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--levels", default="P2,P3,P4,P5,P6")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--teacher", default="frozen", choices=("frozen", "trained"))
    parser.add_argument("--compare", default="correlation", choices=("correlation", "values"))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--no-error", action="store_true", help="skip the float64 comparison")
    parser.add_argument("--json", help="write the rows to this file as well")
    arguments = parser.parse_args()
    device = jax.devices()[0]
    about = arguments.dtype, arguments.compare
    print(f"{device.device_kind} ({os.cpu_count()} CPU cores),", *about)
    arguments.start = {}
    rows = []
    print("level pixels | ms plain  gram ratio | MiB plain  gram ratio | GFLOP plain gram ratio")
    for level in arguments.levels.split(","):
        arguments.start[level] = step(make(level, "plain", arguments), jnp.float32)[1]
        row = measure(level, arguments)
        rows.append(row)
        print(
            f"{level:5} {row['pixels']:6} | {row['plain_ms']:8.1f} {row['gram_ms']:5.1f} "
            f"{row['ms_ratio']:5.2f} | {row['plain_mib']:9.1f} {row['gram_mib']:5.1f} "
            f"{row['mib_ratio']:5.2f} | {row['plain_gflop']:11.2f} {row['gram_gflop']:4.2f} "
            f"{row['gflop_ratio']:5.2f}",
            flush=True,
        )
        if not arguments.no_error:
            for form in ("plain", "gram"):
                print(
                    f"      {form:5} error in loss {row[f'{form}_loss_error']:.1e}, map gradient "
                    f"{row[f'{form}_gradient_error']:.1e}, parameter gradient "
                    f"{row[f'{form}_parameter_error']:.1e}",
                    flush=True,
                )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"device": device.device_kind, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
