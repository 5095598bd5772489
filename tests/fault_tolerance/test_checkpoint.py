"""Checkpoints of small states, without compiling a network."""

import contextlib
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from orbax.checkpoint.utils import TMP_DIR_SUFFIX

from drkd_jax.errors import UserError
from drkd_jax.fault_tolerance import checkpoint
from drkd_jax.models.arrays import fill, flatten, unflatten
from drkd_jax.step.sharding import data_mesh, put_everywhere, replicated
from drkd_jax.step.state import merge_module, new_state, num_parameters, split_module
from drkd_jax.weights.ours import read_checkpoint

CONFIG = {"seed": 1, "train": {"steps": 9, "momentum": 0.9}, "eval": {"batch_size": 2}}
TX = optax.chain(optax.trace(0.9), optax.scale_by_learning_rate(lambda _: 0.1))


class Small(nnx.Module):
    def __init__(self, width, key):
        rngs = nnx.Rngs(key)
        self.layers = nnx.List([nnx.Linear(3, width, rngs=rngs), nnx.Linear(width, 2, rngs=rngs)])
        self.norm = nnx.BatchNorm(2, rngs=rngs)

    def is_trained(self, path, variable):
        return isinstance(variable, nnx.Param) and tuple(path[:2]) != ("layers", 0)


def parts_of(width=4, key=0):
    student, distiller = Small(width, key), Small(5, key + 1)
    return {
        "student": split_module(student, student.is_trained),
        "distiller": split_module(distiller, distiller.is_trained),
    }


def state_of(width=4, key=0, step=0):
    state = put_everywhere(new_state(parts_of(width, key), TX), data_mesh())
    gradient = jax.tree.map(jnp.cos, state.params)
    _, opt_state = TX.update(gradient, state.opt_state, state.params)
    return type(state)(jnp.int32(step), state.params, state.model_state, opt_state)


def about(**values):
    return {"config": CONFIG, "categories": [[1, "disc"]], "data": {"next": 7}, **values}


@pytest.fixture
def folder(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
    yield tmp_path, checkpoints
    checkpoints.close()


def test_a_module_taken_apart_and_flattened_comes_back():
    parts = parts_of()["student"]
    assert set(flatten(parts.params)) == {
        "layers.1.kernel",
        "layers.1.bias",
        "norm.scale",
        "norm.bias",
    }
    assert "layers.0.kernel" in flatten(parts.model_state)
    assert num_parameters(parts.params) == 4 * 2 + 2 + 2 + 2
    again = unflatten(flatten(parts.params), parts.params)
    module = merge_module(parts._replace(params=again))
    np.testing.assert_array_equal(
        module.layers[1].kernel[...], parts_of()["student"].params["layers"][1]["kernel"]
    )


def test_a_state_comes_back_bit_for_bit(folder):
    _, checkpoints = folder
    state = state_of(step=6)
    checkpoints.save(state, about())
    assert checkpoints.latest_step() == 6
    assert checkpoints.about()["data"] == {"next": 7}
    back = checkpoints.restore(state_of(key=5), replicated(data_mesh()))
    assert int(back.step) == 6
    assert jax.tree.structure(back) == jax.tree.structure(state)
    for mine, theirs in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


def test_old_checkpoints_go_and_the_best_one_stays(folder):
    workdir, checkpoints = folder
    assert checkpoints.best() is None
    for step in (1, 2, 3, 4):
        state = state_of(key=step, step=step)
        checkpoints.save(state, about())
        if step in (1, 2):
            checkpoints.save_best(state, about(numbers={"AP": step / 10}))
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["3", "4"]
    assert checkpoints.best() == (2, {"AP": 0.2})
    # After a kill, the run continued from an earlier step, and is better there now.
    checkpoints.save_best(state_of(key=1, step=1), about(numbers={"AP": 0.3}))
    assert checkpoints.best() == (1, {"AP": 0.3})
    checkpoints.save_best(state_of(key=2, step=1), about(numbers={"AP": 0.4}))
    assert checkpoints.best() == (1, {"AP": 0.4})
    checkpoints.save_best(state_of(key=2, step=2), about(numbers={"AP": 0.5}))
    for which, wanted in (("best", 2), ("last", 4)):
        arrays, _, step = read_checkpoint(workdir, which)
        student = state_of(key=wanted).params["student"]
        assert step == wanted
        np.testing.assert_array_equal(arrays["norm.scale"], student["norm"]["scale"])
        np.testing.assert_array_equal(arrays["layers.1.kernel"], student["layers"][1]["kernel"])


def test_a_write_that_the_system_refuses_leaves_the_one_before(folder):
    workdir, checkpoints = folder
    checkpoints.save(state_of(step=1), about())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**15, hard))
    try:
        with pytest.raises(UserError, match=r"step 2 cannot be written .* before it are whole"):
            checkpoints.save(state_of(width=40_000, step=2), about())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["1"]
    again = checkpoint.Checkpoints(workdir, keep=2)
    assert again.latest_step() == 1
    again.restore(state_of(), replicated(data_mesh()))
    again.close()


def test_a_write_under_way_that_fails_is_told_before_the_run_ends(folder, monkeypatch):
    _, checkpoints = folder

    def save():
        checkpoints.save(state_of(width=40_000, step=2), about())
        checkpoints.wait()

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # where a thread writes
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**15, hard))
    try:
        with pytest.raises(UserError, match=r"step 2 cannot be written .* before it are whole"):
            save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    checkpoints.save(state_of(step=3), about())
    checkpoints.wait()
    assert checkpoints.latest_step() == 3


def test_what_a_killed_write_left_is_removed(folder):
    workdir, checkpoints = folder
    checkpoints.save(state_of(step=1), about())
    left = workdir / "checkpoints" / f"2{TMP_DIR_SUFFIX}"
    (left / "student").mkdir(parents=True)
    again = checkpoint.Checkpoints(workdir, keep=2)
    assert not left.exists()
    again.save(state_of(step=2), about())
    assert again.latest_step() == 2
    again.close()


def test_a_reader_leaves_what_a_run_is_writing(folder):
    workdir, checkpoints = folder
    checkpoints.save(state_of(step=3), about())
    checkpoints.wait()
    shutil.rmtree(workdir / "best")
    under_way = workdir / "checkpoints" / f"6{TMP_DIR_SUFFIX}77"
    under_way.mkdir()
    before = sorted(workdir.rglob("*"))
    reader = checkpoint.Checkpoints(workdir, keep=1, read_only=True)
    with contextlib.closing(reader):
        assert int(reader.restore(state_of(), replicated(data_mesh())).step) == 3
    assert sorted(workdir.rglob("*")) == before


@pytest.mark.parametrize("name", ["checkpoints", "best"])
def test_a_file_in_the_way_of_checkpoints_is_told_before_the_first_step(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(UserError, match=rf"{name}: cannot be written \(there is a file of that"):
        checkpoint.Checkpoints(tmp_path, keep=1)


def test_another_model_is_refused(folder):
    _, checkpoints = folder
    checkpoints.save(state_of(step=1), about())
    with pytest.raises(
        UserError, match=r"does not fit this config; \d+ arrays differ, the first is layers\.0"
    ):
        checkpoints.restore(state_of(width=6), replicated(data_mesh()))


def test_filling_a_module_of_other_shapes_names_the_array():
    arrays = flatten(nnx.as_pure(nnx.state(Small(4, 0))))
    filled = fill(Small(4, 9), arrays, "here")
    np.testing.assert_array_equal(filled.layers[0].kernel[...], arrays["layers.0.kernel"])
    with pytest.raises(UserError, match=r"here: layers\.0\.bias is \(4,\) .* \(6,\) in the model"):
        fill(Small(6, 0), arrays, "here")
    del arrays["norm.mean"]
    with pytest.raises(UserError, match=r"norm\.mean is missing"):
        fill(Small(4, 0), arrays, "here")


def test_a_folder_without_a_checkpoint_is_told(tmp_path):
    with pytest.raises(UserError, match="neither a work folder of a run"):  # images, say
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds no checkpoint yet"):
        read_checkpoint(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        read_checkpoint(tmp_path / "none")


def test_a_part_of_a_work_folder_is_named(tmp_path):
    (tmp_path / "W" / "best" / "4").mkdir(parents=True)
    for part in ("best", "best/4"):
        with pytest.raises(UserError, match=r"part of a work folder; name the folder itself, .*W$"):
            read_checkpoint(tmp_path / "W" / part)


def test_a_checkpoint_that_was_copied_in_part_is_told(folder):
    workdir, checkpoints = folder
    checkpoints.save(state_of(step=1), about())
    largest = largest_file(workdir / "checkpoints" / "1" / "student")
    largest.write_bytes(largest.read_bytes()[:10])
    with pytest.raises(UserError, match=r"checkpoints/1: not a whole checkpoint"):
        read_checkpoint(workdir, "last")


def largest_file(item):
    files = [path for path in item.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def test_a_changed_byte_never_gives_other_arrays(folder):
    """Most of the bytes, taken across the file of arrays, belong to a number."""
    workdir, checkpoints = folder
    checkpoints.save(state_of(width=4000, step=1), about())
    checkpoints.wait()
    before, _, _ = read_checkpoint(workdir, "last")
    file = largest_file(workdir / "checkpoints" / "1" / "student")
    whole = file.read_bytes()
    told = []
    for at in range(5, len(whole), len(whole) // 7):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        try:
            arrays, _, _ = read_checkpoint(workdir, "last")
        except UserError as error:
            told.append(str(error))
            continue
        for name, array in before.items():
            np.testing.assert_array_equal(arrays[name], array)
    assert any("differs from what was written (checksum)" in words for words in told), told
    # What a run continues from is checked completely.
    file.write_bytes(whole)
    optimiser = largest_file(workdir / "checkpoints" / "1" / "training")
    whole = optimiser.read_bytes()
    middle = len(whole) // 2
    optimiser.write_bytes(whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :])
    again = checkpoint.Checkpoints(workdir, keep=2)
    with (
        contextlib.closing(again),
        pytest.raises(UserError, match=r"checkpoints/1: not a whole checkpoint \(training: "),
    ):
        again.restore(state_of(width=4000), replicated(data_mesh()))


def cut_array(step):
    largest = largest_file(step / "student")
    largest.write_bytes(largest.read_bytes()[:10])


@pytest.mark.parametrize(
    "damage",
    [
        cut_array,
        lambda step: shutil.rmtree(step / "training"),
        lambda step: (step / "about" / "metadata").write_text('{"config": '),
        lambda step: shutil.rmtree(step) or step.mkdir(),
    ],
    ids=["an array", "no optimiser", "the JSON", "an empty folder"],
)
def test_a_run_whose_newest_checkpoint_is_damaged_is_told_where_it_can_go_on(folder, damage, capfd):
    workdir, checkpoints = folder
    for step in (1, 2):
        checkpoints.save(state_of(step=step), about())
    checkpoints.wait()
    damage(workdir / "checkpoints" / "2")

    def go_on():
        again = checkpoint.Checkpoints(workdir, keep=2)
        with contextlib.closing(again):
            again.about()
            return int(again.restore(state_of(), replicated(data_mesh())).step)

    where = r"checkpoints/2: not a whole checkpoint \(.*out of checkpoints/, .* from step 1$"
    with pytest.raises(UserError, match=where):
        go_on()
    assert capfd.readouterr().err == ""
    (workdir / "checkpoints" / "2").rename(workdir / "damaged")
    assert go_on() == 1


def test_a_damaged_best_checkpoint_is_told(folder):
    workdir, checkpoints = folder
    checkpoints.save_best(state_of(step=3), about(numbers={"AP": 0.2}))
    checkpoints.wait()
    (workdir / "best" / "3" / "about" / "metadata").write_text("")
    with pytest.raises(UserError, match=r"best/3: not a whole .* out of best/, .* without it$"):
        checkpoints.best()
