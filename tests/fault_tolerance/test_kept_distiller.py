"""The distiller of a checkpoint, read without the rest."""

import contextlib
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from drkd_jax import distill
from drkd_jax.errors import UserError
from drkd_jax.fault_tolerance.checkpoint import Checkpoints
from drkd_jax.fault_tolerance.kept_distiller import load_distiller
from drkd_jax.models.arrays import flatten
from drkd_jax.step.sharding import data_mesh, put_everywhere, replicated
from drkd_jax.step.state import new_state, split_module
from drkd_jax.types import FeatureSpec
from tests.fault_tolerance.test_checkpoint import TX, about, largest_file, parts_of


def saved(checkpoints, made):
    """A state with this distiller, written as step 0."""
    parts = parts_of() | {"distiller": split_module(made, made.is_trained)}
    state = put_everywhere(new_state(parts, TX), data_mesh())
    checkpoints.save(state, about())
    return state


def test_a_distiller_without_arrays_comes_back(tmp_path):
    """PKD between maps of equal width, on the teacher's own scale, has no arrays."""
    specs = (FeatureSpec((4,), (8,), ("lateral",)),) * 2
    off = {"weight": 0.0}
    drkd = dict.fromkeys(("pixel_relation", "instance_relation", "instance_feature"), off)
    config = {"distill": {**drkd, "pkd": {"weight": 6.0}, "standardize_teacher": False}}
    settings = distill.distill_config(config["distill"])
    made = distill.Distiller(settings, *specs, rngs=nnx.Rngs(0))
    assert not jax.tree.leaves(split_module(made, made.is_trained)[1:])
    with contextlib.closing(Checkpoints(tmp_path, keep=1)) as checkpoints:
        state = saved(checkpoints, made)
        back = checkpoints.restore(state, replicated(data_mesh()))
    assert jax.tree.structure(back) == jax.tree.structure(state)
    again = load_distiller(tmp_path, 0, config, specs)
    assert again is not None
    assert again.weights == {"pkd": 6.0}
    assert load_distiller(tmp_path, 1, config, specs) is None


def test_a_distiller_with_a_changed_byte_is_not_used(tmp_path):
    specs = (FeatureSpec((4,), (256,), ("lateral",)),) * 2
    config = {"distill": {"pixel_relation": {"weight": 1.0}}}
    made = distill.Distiller(distill.distill_config(config["distill"]), *specs, rngs=nnx.Rngs(3))
    with contextlib.closing(Checkpoints(tmp_path, keep=1)) as checkpoints:
        saved(checkpoints, made)
    before = load_distiller(tmp_path, 0, config, specs)
    wanted, found = (flatten(nnx.as_pure(nnx.state(each))) for each in (made, before))
    assert wanted.keys() == found.keys()
    assert sum(array.size for array in wanted.values()) > 40_000
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)
    step = tmp_path / "checkpoints" / "0"
    file = largest_file(step / "training")
    whole = file.read_bytes()
    told = []
    for at in range(5, len(whole), len(whole) // 11):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        try:
            again = flatten(nnx.as_pure(nnx.state(load_distiller(tmp_path, 0, config, specs))))
        except UserError as error:
            told.append(str(error))
            continue
        for name, array in wanted.items():  # the byte is one of another array
            np.testing.assert_array_equal(again[name], array)
    assert any("training: distiller." in words and "(checksum)" in words for words in told), told
    for damage in (lambda: file.write_bytes(whole[:10]), lambda: shutil.rmtree(step / "about")):
        damage()
        with pytest.raises(UserError, match=r"checkpoints/0: not a whole checkpoint"):
            load_distiller(tmp_path, 0, config, specs)
        file.write_bytes(whole)
