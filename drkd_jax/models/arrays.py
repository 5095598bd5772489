"""Reads and writes a module's arrays by flat names such as "backbone.stem.kernel"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from drkd_jax.errors import UserError

Arrays = Any  # a pytree of arrays: nnx.State holding bare arrays


def flatten(tree: Arrays) -> dict[str, Any]:
    """A pytree as one flat dict: "backbone.stem.kernel" -> array."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def unflatten(flat: Mapping[str, Any], like: Arrays) -> Arrays:
    """The inverse of `flatten`, in the structure of `like`.

    Raises:
        KeyError: a leaf of `like` is not in `flat`.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
    return jax.tree_util.tree_unflatten(structure, [flat[name] for name in names])


def fill(module: Any, arrays: Mapping[str, Any], where: str) -> Any:
    """Puts arrays, by flat name, into a module with the same names and shapes.

    Raises:
        UserError: names or shapes differ; the message gives the first of them.
    """
    graph, state = nnx.split(module)
    pure = nnx.as_pure(state)
    wanted = {name: tuple(leaf.shape) for name, leaf in flatten(pure).items()}
    found = {name: tuple(leaf.shape) for name, leaf in arrays.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise UserError(
                f"{where}: {name} is {found.get(name, 'missing')} in the checkpoint and "
                f"{wanted.get(name, 'not there')} in the model"
            )
    return nnx.merge(
        graph, unflatten({name: jnp.asarray(array) for name, array in arrays.items()}, pure)
    )
