"""Files of torch.save are read as by torch, and their code is never run."""

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from drkd_jax.errors import UserError
from drkd_jax.weights.foreign.pickled_names import NotPlainError
from drkd_jax.weights.foreign.torch_file import LEGACY_MAGIC, LEGACY_PROTOCOL, read_torch_file
from drkd_jax.weights.foreign.unpickler import read_pickle

FIXTURES = Path(__file__).parents[2] / "fixtures" / "weights"
FILES = ("zip.pth", "protocol4.pth", "legacy.pth")


@pytest.mark.parametrize("name", FILES)
def test_every_array_is_what_torch_wrote(name):
    expected = np.load(FIXTURES / "expected.npz")
    saved = read_torch_file(FIXTURES / name)
    weights = saved.content["state_dict"]
    assert list(weights) == list(expected)
    for key, tensor in weights.items():
        array = saved.array(tensor)
        assert array.shape == expected[key].shape
        np.testing.assert_array_equal(array.astype(np.float64), expected[key])
    kinds = {key: saved.array(weights[key]).dtype.name for key in ("plain", "half", "bfloat16")}
    assert kinds == {"plain": "float32", "half": "float16", "bfloat16": "bfloat16"}
    assert saved.form == name.split(".")[0].replace("protocol4", "zip")


@pytest.mark.parametrize("name", FILES)
def test_what_stands_beside_the_weights_is_plain_or_inert(name):
    saved = read_torch_file(FIXTURES / name)
    meta = saved.content["meta"]
    assert (meta["CLASSES"], meta["epoch"], meta["lr"]) == (("x", "y"), 12, 1e-3)
    assert meta["score"].name.endswith("multiarray.scalar")
    assert any(kind.endswith("multiarray.scalar") for kind in saved.inert)


def test_arrays_of_one_storage_share_the_file_s_bytes_and_cannot_be_written():
    saved = read_torch_file(FIXTURES / "zip.pth")
    plain, turned = (saved.array(saved.content["state_dict"][k]) for k in ("plain", "transposed"))
    assert np.shares_memory(plain, turned)
    with pytest.raises(ValueError, match="read-only"):
        plain[0, 0] = 1


# --- files that would run code


class Calls:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Attribute:
    """Pickles as a call that sets attributes, as `BUILD` does."""

    def __reduce__(self):
        return dict, (), {"x": Calls(os.system, "touch owned")}


def global_opcode(module, name):
    return b"\x80\x02c" + module.encode() + b"\n" + name.encode() + b"\n"


def short(text):
    return b"\x8c" + bytes([len(text)]) + text.encode()


PERSISTENT = b"\x80\x02(X\x06\x00\x00\x00moduleK\x01K\x02K\x03K\x04tQ."
MALICIOUS = {
    "os.system": pickle.dumps(Calls(os.system, "touch owned"), 2),
    "os.system in a dict": pickle.dumps({"meta": [Calls(os.system, "touch owned")]}, 2),
    "eval": pickle.dumps(Calls(eval, "1 + 1"), 2),
    "getattr": pickle.dumps(Calls(getattr, "a", "b"), 2),
    "a nested call": pickle.dumps(Calls(print, Calls(os.system, "touch owned")), 2),
    "protocol 4": pickle.dumps(Calls(os.system, "touch owned"), 4),
    "protocol 0": pickle.dumps(Calls(os.system, "touch owned"), 0),
    "attributes": pickle.dumps(Attribute(), 2),
    "STACK_GLOBAL": b"\x80\x04" + short("os") + short("system") + b"\x93" + short("id") + b"\x85R.",
    "STACK_GLOBAL of dotted names": b"\x80\x04"
    + short("torch._utils")
    + short("_rebuild_tensor_v2.__globals__")
    + b"\x93.",
    "another function of torch._utils": global_opcode("torch._utils", "_import_dotted_name")
    + b"X\x02\x00\x00\x00os\x85R.",
    "torch.load": global_opcode("torch", "load") + b")R.",
    "torch.hub": global_opcode("torch.hub", "load") + b")R.",
    "a storage class that is none": global_opcode("torch", "EvilStorage") + b".",
    "a call of a storage": global_opcode("torch", "FloatStorage") + b"K\x05\x85R.",
    "a call of a call's result": global_opcode("collections", "OrderedDict") + b")R)R.",
    "INST": b"(S'touch owned'\nios\nsystem\n.",
    "OBJ": b"(" + b"cos\nsystem\n" + b"S'touch owned'\no.",
    "NEWOBJ": b"\x80\x02cos\nsystem\n)\x81.",
    "a persistent id": PERSISTENT,
    "a persistent id in text": b"Pos.system\n.",
    "an extension": b"\x80\x02\x82\x01.",
}


@pytest.mark.parametrize("name", MALICIOUS)
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_file_that_would_run_code_is_refused(name, form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write = {"zip": write_zip, "legacy": write_legacy}[form]
    write(tmp_path / "evil.pth", MALICIOUS[name])
    with pytest.raises(UserError, match=r"evil\.pth: refused: "):
        read_torch_file(tmp_path / "evil.pth")
    assert not (tmp_path / "owned").exists()


def test_the_refusal_names_what_the_file_asked_for():
    with pytest.raises(NotPlainError, match=r"it asks for (posix|nt|os)\.system"):
        read_pickle(io.BytesIO(MALICIOUS["os.system"]), set())
    with pytest.raises(NotPlainError, match=r"builtins?__?\.eval"):
        read_pickle(io.BytesIO(MALICIOUS["eval"]), set())


def test_an_inert_object_is_never_built():
    """The names from real checkpoints' histories are accepted, and none of them is called."""
    inert: set[str] = set()
    history = global_opcode("mmengine.logging.history_buffer", "HistoryBuffer")
    value = read_pickle(io.BytesIO(history + b")R}X\x01\x00\x00\x00aK\x01sb."), inert)
    assert inert == {"mmengine.logging.history_buffer.HistoryBuffer"}
    assert value.name == "mmengine.logging.history_buffer.HistoryBuffer"


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])  # the second: Python 3.13
@pytest.mark.parametrize("name", ["PosixPath", "WindowsPath", "PureWindowsPath"])
def test_a_path_among_a_training_s_arguments_is_inert_wherever_it_ran(module, name):
    inert: set[str] = set()
    path = f"c{module}\n{name}\n".encode() + b"(X\x01\x00\x00\x00atR"
    assert read_pickle(io.BytesIO(b"}X\x01\x00\x00\x00p" + path + b"s."), inert)["p"]
    assert inert == {f"{module}.{name}"}


def test_a_method_of_an_inert_object_is_inert_and_any_other_is_refused():
    """For example `HistoryBuffer.max` in mmengine's training checkpoints."""
    history = b"cmmengine.logging.history_buffer\nHistoryBuffer\n"
    method = b"\x80\x02c__builtin__\ngetattr\n" + history + b"X\x03\x00\x00\x00max\x86R."
    assert read_pickle(io.BytesIO(method), set()).name.endswith("HistoryBuffer")
    for owner in (b"X\x02\x00\x00\x00os", b"}", b"ccollections\nOrderedDict\n"):
        other = method.replace(history, owner)
        with pytest.raises(NotPlainError, match="getattr"):
            read_pickle(io.BytesIO(other), set())


# --- files that are not what they say


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth"])
def test_a_file_cut_short_anywhere_is_told(name, tmp_path):
    whole = (FIXTURES / name).read_bytes()
    for share in (0.02, 0.3, 0.6, 0.9, 0.999):
        (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UserError, match="refused: "):
            read_torch_file(tmp_path / name)


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth"])
def test_a_damaged_file_is_told_or_read_never_worse(name, tmp_path):
    whole = (FIXTURES / name).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 4):
            damaged[place] = rng.integers(256)
        (tmp_path / name).write_bytes(damaged)
        try:
            saved = read_torch_file(tmp_path / name)
        except UserError:
            continue
        state = saved.content.get("state_dict") if isinstance(saved.content, dict) else None
        for tensor in (state or {}).values():
            if hasattr(tensor, "storage"):
                saved.array(tensor).sum()


def tensor_pickle(numbers, shape, strides, offset=0, key="0"):
    """{"w": a float32 tensor of this shape, from a storage of `numbers` elements}."""

    def integers(values):
        return b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"

    name = key.encode()
    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX"
        + struct.pack("<I", len(name))
        + name
        + b"X\x03\x00\x00\x00cpuJ"
        + struct.pack("<i", numbers)
        + b"tQ"
    )
    return (
        b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + b"J"
        + struct.pack("<i", offset)
        + integers(shape)
        + integers(strides)
        + b"\x89NtRs."
    )


CLAIMS = {
    "more numbers than the storage": (8, (100,), (1,), 0),
    "one past the end": (8, (8,), (1,), 1),
    "strides past the end": (8, (2, 2), (7, 1), 1),
    "an expanded tensor of 10^12 numbers": (8, (10**6, 10**6), (0, 0), 0),
    "a negative stride": (8, (2,), (-1,), 4),
    "a negative side": (8, (-2,), (1,), 0),
    "a negative offset": (8, (2,), (1,), -1),
    "strides of another number": (8, (2, 2), (1,), 0),
    "a storage larger than the file": (10**6, (4,), (1,), 0),
}


CLAIMS |= {
    "more dimensions than an array can have": (8, (1,) * 100, (1,) * 100, 0),
    "no numbers in more memory than there is": (8, (0, *(2**31 - 1,) * 3), (1,) * 4, 0),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_tensor_that_reaches_outside_its_storage_is_refused(claim, tmp_path):
    write_zip(tmp_path / "x.pth", tensor_pickle(*CLAIMS[claim]), np.zeros(8, np.float32))
    with pytest.raises(UserError, match="refused: "):
        read_torch_file(tmp_path / "x.pth")


def test_a_storage_of_more_numbers_than_can_be_printed_is_refused(tmp_path):
    size = pickle.dumps(1 << 20_000, 2)[2:-1]
    whole = tensor_pickle(8, (8,), (1,)).replace(b"J" + struct.pack("<i", 8) + b"tQ", size + b"tQ")
    assert len(whole) > 2000
    write_zip(tmp_path / "x.pth", whole, np.zeros(8, np.float32))
    with pytest.raises(UserError, match="refused: a storage that no memory could hold"):
        read_torch_file(tmp_path / "x.pth")


def test_strides_of_many_dimensions_are_those_of_an_array():
    """Their product has no meaning, and may be far larger than the array."""
    shape = (8, 4, 128, 128, 128)
    strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(5))
    found = read_pickle(io.BytesIO(tensor_pickle(int(np.prod(shape)), shape, strides)), set())
    assert (found["w"].shape, found["w"].strides) == (shape, strides)


def test_a_big_endian_file_has_the_same_numbers(tmp_path):
    numbers = np.arange(8, dtype=np.float32)
    pickled = tensor_pickle(8, (2, 3), (4, 1), 1)
    for order, stored in (("little", numbers), ("big", numbers.astype(">f4"))):
        write_zip(tmp_path / "x.pth", pickled, stored, order)
        saved = read_torch_file(tmp_path / "x.pth")
        np.testing.assert_array_equal(
            saved.array(saved.content["w"]), numbers[1:].reshape(-1)[[[0, 1, 2], [4, 5, 6]]]
        )


def test_a_compressed_zip_is_no_file_of_torch(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", tensor_pickle(8, (8,), (1,)))
        archive.writestr("x/data/0", bytes(10**7))
    with pytest.raises(UserError, match=r"compressed, which torch.save never does"):
        read_torch_file(tmp_path / "bomb.pth")


def test_a_torchscript_program_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}.")
        archive.writestr("x/constants.pkl", b"\x80\x02).")
    with pytest.raises(UserError, match="a TorchScript program"):
        read_torch_file(tmp_path / "x.pt")


def test_structures_that_would_exhaust_an_unpickler_are_harmless():
    """Lists that contain each other 2^60 times, keys of 10^5 tuples, a huge index in the memo."""
    layers = b"".join(
        bytes([0x5D, 0x71, i, 0x68, i - 1, 0x61, 0x68, i - 1, 0x61]) for i in range(1, 61)
    )
    doubled = b"\x80\x02]q\x00" + layers + b"."
    assert isinstance(read_pickle(io.BytesIO(doubled), set()), list)
    deep = b"\x80\x02})" + b"\x85" * 10**5 + b"K\x01s."
    with pytest.raises(NotPlainError, match="a key"):
        read_pickle(io.BytesIO(deep), set())
    tensor = tensor_pickle(8, (8,), (1,))[9:-2]  # a key that is long to print
    with pytest.raises(NotPlainError, match="a key"):
        read_pickle(io.BytesIO(b"\x80\x02}(" + tensor + b"Nu."), set())
    assert read_pickle(io.BytesIO(b"\x80\x02K\x01r\xff\xff\xff\x7f."), set()) == 1


LIST = b"](" + b"K\x01" * 5000 + b"eq\x01"
TEXT = b"X" + struct.pack("<I", 5000) + b"a" * 5000 + b"q\x01"
AGAIN = b"h\x02h\x01\x85R" * 20
REPEATED = {
    "sizes": LIST + b"ctorch\nSize\nq\x02" + AGAIN,
    "texts": TEXT + b"c_codecs\nencode\nq\x02" + AGAIN,
    "keys of many numbers": b"}((" + b"K\x01" * 5000 + b"tq\x01Nh\x01Nu",
    "keys of many digits": b"}(\x8b" + struct.pack("<i", 5000) + b"\x01" * 5000 + b"q\x01Nu",
}


@pytest.mark.parametrize("inside", REPEATED.values(), ids=REPEATED)
def test_one_large_value_used_again_and_again_ends_with_a_word(inside):
    """Each use would copy or hash all of it: a short file would cause endless work."""
    with pytest.raises(NotPlainError, match=r"over and over|a key that"):
        read_pickle(io.BytesIO(b"\x80\x02](" + inside + b"e."), set())


def test_a_pickled_config_is_its_values():
    values = b"}X\x01\x00\x00\x00aK\x01s"
    for name in (b"mmengine.config.config\nConfigDict", b"addict.addict\nDict"):
        assert read_pickle(io.BytesIO(b"\x80\x02c" + name + b"\n" + values + b"\x85R."), set()) == {
            "a": 1
        }
    whole = b"\x80\x02cmmcv.utils.config\nConfig\n)\x81" + values + b"NN\x87b."
    assert read_pickle(io.BytesIO(whole), set()) == {"a": 1}


def write_zip(path, pickled, numbers=None, order=None):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        if numbers is not None:
            archive.writestr("archive/data/0", numbers.tobytes())
        if order:
            archive.writestr("archive/byteorder", order)


def write_legacy(path, pickled):
    head = [LEGACY_MAGIC, LEGACY_PROTOCOL, {"little_endian": True}]
    parts = [pickle.dumps(item, 2) for item in head]
    path.write_bytes(b"".join([*parts, pickled, pickle.dumps([], 2)]))
