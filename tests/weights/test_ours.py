"""Files that this program wrote: read completely or not at all, and damage is reported."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from drkd_jax.errors import UserError
from drkd_jax.weights import ours
from drkd_jax.weights.opening import load
from drkd_jax.weights.ours import write_ours, write_safetensors
from tests.weights.small import foreign
from tests.weights.test_opening import assert_same, save


@pytest.fixture(scope="module")
def retina():
    return foreign("mmdet retinanet")[1]


def test_a_damaged_file_of_ours_is_told(retina, tmp_path):
    weights = load(save(tmp_path, retina))
    whole = dict(weights.arrays)
    first = sorted(whole)[0]
    path = tmp_path / "ours.safetensors"
    write_ours(path, {k: v for k, v in whole.items() if k != first}, weights.about)
    with pytest.raises(UserError, match=f"1 array is not of its settings.*{first}"):
        load(path)
    write_ours(path, whole, weights.about)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="safetensors"):
        load(path)


def changed(path, old, new):
    """Writes other bytes over those of a file that are there once."""
    content = path.read_bytes()
    assert len(old) == len(new)
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_a_byte_that_changed_inside_an_array_of_ours_is_told(kind, retina, tmp_path):
    weights = load(save(tmp_path, retina))
    path = tmp_path / "ours.safetensors"
    arrays = {name: array.astype(kind) for name, array in weights.arrays.items()}
    name = "backbone.stem.conv.kernel"
    write_ours(path, arrays, weights.about)
    load(path)
    bytes_of = arrays[name].tobytes()
    changed(path, bytes_of, bytes_of[:40] + bytes([bytes_of[40] ^ 1]) + bytes_of[41:])
    with pytest.raises(
        UserError, match=rf"ours\.safetensors: .*{name} differs from what was written.*copy"
    ):
        load(path)


def test_a_byte_that_changed_in_what_convert_wrote_for_a_library_is_told(retina, tmp_path):
    path = tmp_path / "theirs.safetensors"
    write_safetensors(path, retina, {"format": "pt"})
    load(path)
    path.write_bytes(path.read_bytes()[:-1] + b"\x77")
    last = sorted(retina, key=lambda name: name.encode())[-1]
    with pytest.raises(UserError, match=rf"theirs\.safetensors: arrays: {last} differs.*copy"):
        load(path)


def test_a_letter_that_changed_in_what_a_file_of_ours_says_is_told(retina, tmp_path):
    weights = load(save(tmp_path, retina))
    path = tmp_path / "ours.safetensors"
    write_ours(path, weights.arrays, dataclasses.replace(weights.about, data={"shorter": 801}))
    changed(path, b'\\"shorter\\": 801', b'\\"shorter\\": 301')
    with pytest.raises(UserError, match=r"metadata: drkd_jax differs from what was written"):
        load(path)


@pytest.mark.parametrize("said", ["{", "[]", '{"arrays": 5}'])
def test_checksums_that_are_none_are_told(said, retina, tmp_path):
    weights = load(save(tmp_path, retina))
    about = json.dumps(dataclasses.asdict(weights.about))
    path = tmp_path / "o.st"
    save_file(dict(weights.arrays), path, {"drkd_jax": about, "drkd_jax.checksums": said})
    with pytest.raises(UserError, match=r"o\.st: .* \((Expecting|its drkd_jax.checksums are none)"):
        load(path)


def test_a_file_of_an_earlier_version_without_checksums_is_read(retina, tmp_path):
    weights = load(save(tmp_path, retina))
    about = json.dumps(dataclasses.asdict(weights.about))
    save_file(dict(weights.arrays), tmp_path / "o.st", {"drkd_jax": about})
    assert_same(load(tmp_path / "o.st").arrays, weights.arrays)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"settings": [1]}, "its settings is a list"),
        ({"settings": {"backbone": 5}}, "its settings hold no backbone"),
        ({"data": 5}, "its data is a int"),
        ({"source": "x"}, "its source is a str"),
        ({"data": {"mean": (1, 2, 3), "shorter": "x"}}, "data.shorter must be int, not 'x'"),
        ({"data": {"mean": (1, 2, 3), "longer": []}}, "data.longer must be int"),
        ({"data": {"mean": 7}}, "config.data.mean = 7: three numbers"),
        ({"num_classes": "3"}, "its num_classes is a str"),
        (
            {"num_classes": 1 << 60},
            "num_classes is 1152921504606846976, which its arrays cannot be",
        ),
        ({"categories": ((1, "nut"),)}, "it names 1 class and counts 3"),
    ],
)
def test_what_a_damaged_file_of_ours_says_is_told(change, words, retina, tmp_path):
    weights = load(save(tmp_path, retina))
    said = json.dumps(dataclasses.asdict(weights.about) | change)
    write_safetensors(tmp_path / "o.st", weights.arrays, {"drkd_jax": said})
    with pytest.raises(UserError, match=rf"o\.st: .*{words}"):
        load(tmp_path / "o.st")


@pytest.mark.parametrize("key", ["head_convs", "octaves"])
def test_layers_and_anchors_without_arrays_are_not_built(key, retina, tmp_path):
    weights = load(save(tmp_path, retina))
    own = {"anchors": {"scale": 4.0, key: 1 << 60}} if key == "octaves" else {key: 1 << 60}
    about = dataclasses.replace(weights.about, settings={**weights.about.settings, **own})
    write_ours(tmp_path / "o.st", weights.arrays, about)
    with pytest.raises(
        UserError, match=rf"o\.st: .*{key} is 1152921504606846976, which its arrays"
    ):
        load(tmp_path / "o.st")


def test_half_precision_of_ours_becomes_single(retina, tmp_path):
    weights = load(save(tmp_path, retina))
    for kind in (np.float16, ml_dtypes.bfloat16):
        half = {name: array.astype(kind) for name, array in weights.arrays.items()}
        write_ours(tmp_path / "o.st", half, weights.about)
        found = load(tmp_path / "o.st").arrays
        assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
        assert_same(found, {name: array.astype(np.float32) for name, array in half.items()})


def test_what_a_user_says_of_its_images_goes_before_what_the_file_says(retina, tmp_path):
    weights = load(save(tmp_path, retina))
    data = {"mean": [1, 2, 3], "std": [4, 5, 6], "channels": "rgb"}
    write_ours(tmp_path / "o.st", weights.arrays, dataclasses.replace(weights.about, data=data))
    found = load(tmp_path / "o.st", {"data": {"channels": "bgr", "std": [7, 8, 9]}}).about.data
    assert found == {"mean": [1, 2, 3], "std": [7, 8, 9], "channels": "bgr"}


def test_a_file_of_ours_of_a_kind_that_numpy_has_not_is_told(tmp_path):
    array = {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}
    header = json.dumps({"__metadata__": {"drkd_jax": "{}"}, "w": array}).encode()
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(UserError, match=r"x: not a whole file of ours \(.*float8"):
        load(tmp_path / "x")


def test_a_damaged_export_is_told(retina, tmp_path):
    about = json.dumps(dataclasses.asdict(load(save(tmp_path, retina)).about))
    folder = tmp_path / "student"
    folder.mkdir()
    for text in ("[" * 100_000, "[]", about):  # the last one without its arrays
        (folder / "about.json").write_text(text)
        with pytest.raises(UserError, match=r"student: not a whole export of ours"):
            load(folder)


def test_a_file_of_ours_is_replaced_whole_or_not_at_all(retina, tmp_path, monkeypatch):
    weights = load(save(tmp_path, retina))
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_ours(tmp_path / "taken" / "x.safetensors", weights.arrays, weights.about)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken", "x.safetensors"]

    def stopped(arrays, path, metadata):
        path.write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(ours, "save_file", stopped)
    before = (tmp_path / "x.safetensors").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write_ours(tmp_path / "x.safetensors", weights.arrays, weights.about)
    assert (tmp_path / "x.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken", "x.safetensors"]


def test_a_file_of_ours_is_written_through_a_link(retina, tmp_path):
    weights = load(save(tmp_path, retina))
    real, link = tmp_path / "real" / "x.safetensors", tmp_path / "link.safetensors"
    link.symlink_to(real)
    for _ in range(2):  # its target and the folder need not exist
        write_ours(link, weights.arrays, weights.about)
        assert link.is_symlink()
        assert [path.name for path in real.parent.iterdir()] == ["x.safetensors"]
        assert_same(load(link).arrays, weights.arrays)
        real.write_bytes(b"")
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(UserError, match=r"link\.safetensors: cannot be written \(Too many levels"):
        write_ours(link, weights.arrays, weights.about)
    assert link.is_symlink()


def test_a_part_that_a_file_of_ours_has_not_is_refused(retina, tmp_path):
    weights = load(save(tmp_path, retina))
    write_ours(tmp_path / "o.st", weights.arrays, weights.about)
    assert load(tmp_path / "o.st", {"part": "detector", "prefix": None}).arrays
    for asked in ({"part": "pyramid"}, {"prefix": "teacher."}):
        with pytest.raises(UserError, match=r"o\.st: a file of ours, which holds one detector"):
            load(tmp_path / "o.st", asked)
