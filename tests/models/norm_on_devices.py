"""Run by test_backbone.py: batch norm of a batch on several devices, values and gradients."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from drkd_jax.models.norm import BatchNorm

x, mask, weight = (np.load(sys.argv[1])[name] for name in ("x", "mask", "weight"))
mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
rows = NamedSharding(mesh, PartitionSpec("data"))
found = {}
for group in (0, 2):
    graph, state = nnx.split(BatchNorm(x.shape[-1], group=group))

    def run(x, mask, weight, graph=graph, state=state):
        def total(x):
            norm = nnx.merge(graph, state, copy=True)
            out = norm(x, mask)
            return (out * weight).sum(), (out, norm.mean[...], norm.var[...])

        (_, (out, mean, var)), gradient = jax.value_and_grad(total, has_aux=True)(x)
        return {"out": out, "mean": mean, "var": var, "gradient": gradient}

    arrays = [jax.device_put(jnp.asarray(a), rows) for a in (x, mask, weight)]
    found |= {f"{group} {name}": value for name, value in jax.jit(run)(*arrays).items()}
found["devices"] = jax.device_count()
np.savez(sys.argv[2], **found)
