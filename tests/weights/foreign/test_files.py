"""Where training programs store the weights in their files."""

import io
import json
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from drkd_jax.errors import UserError
from drkd_jax.weights.foreign.files import checked_name, is_safetensors, read_foreign, sha256
from drkd_jax.weights.foreign.unpickler import read_pickle
from drkd_jax.weights.opening import load
from tests.weights.foreign.test_torch_file import FIXTURES, tensor_pickle, write_zip
from tests.weights.foreign.torch_writing import write_torch

NUMBERS = np.arange(8, dtype=np.float32)
TENSOR = tensor_pickle(8, (2, 4), (4, 1))[2:-1]  # {"w": tensor}, without beginning and end


def text(word):
    return b"X" + len(word).to_bytes(4, "little") + word.encode()


def under(key, inner):
    return b"}" + text(key) + inner + b"s"


@pytest.mark.parametrize("key", ["", "state_dict", "my_model"])
def test_weights_are_found_at_the_root_or_under_any_key(key, tmp_path):
    inner = under(key, TENSOR) if key else TENSOR
    # A training script's arguments beside them: not built, and no hindrance.
    script = text("args") + b"cargparse\nNamespace\n)\x81}" + text("lr") + b"K\x01sbs"
    write_zip(tmp_path / "x.pth", b"\x80\x02" + inner + script + b".", NUMBERS)
    found = read_foreign(tmp_path / "x.pth")
    name = f"{key}.w" if key else "w"
    assert found.shapes == {name: (2, 4)}
    np.testing.assert_array_equal(found.arrays[name].ravel(), NUMBERS)
    assert found.inert == ("argparse.Namespace",)
    assert (found.form, found.left_out) == ("zip", {})


def test_what_is_no_array_among_the_weights_is_told(tmp_path):
    inner = TENSOR + text("epoch") + b"K\x03s"
    write_zip(tmp_path / "x.pth", b"\x80\x02" + under("state_dict", inner) + b".", NUMBERS)
    assert read_foreign(tmp_path / "x.pth").left_out == {"state_dict.epoch": "no array but a int"}


@pytest.mark.parametrize("content", [b"]", b"}", b"K\x03", under("state_dict", b"}")])
def test_a_file_without_weights_is_refused(content, tmp_path):
    write_zip(tmp_path / "x.pth", b"\x80\x02" + content + b".")
    with pytest.raises(UserError, match=r"x\.pth: holds no") as raised:
        read_foreign(tmp_path / "x.pth")
    assert ("save the model's state_dict" in str(raised.value)) == (content in (b"]", b"K\x03"))


def test_safetensors_are_read_in_every_precision(tmp_path):
    kinds = {kind: NUMBERS.astype(kind) for kind in ("float32", "float16", ml_dtypes.bfloat16)}
    save_file({str(np.dtype(kind)): array for kind, array in kinds.items()}, tmp_path / "x.st")
    assert is_safetensors(tmp_path / "x.st")
    assert not is_safetensors(FIXTURES / "zip.pth")
    found = read_foreign(tmp_path / "x.st")
    assert {key: str(array.dtype) for key, array in found.arrays.items()} == {
        key: key for key in ("float32", "float16", "bfloat16")
    }
    for array in found.arrays.values():
        np.testing.assert_array_equal(array.astype(np.float32), NUMBERS)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.98])
def test_safetensors_cut_short_are_told(share, tmp_path):
    save_file({"w": NUMBERS}, tmp_path / "x.st")
    whole = (tmp_path / "x.st").read_bytes()
    (tmp_path / "x.st").write_bytes(whole[: max(int(len(whole) * share), 9)])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        read_foreign(tmp_path / "x.st")


def test_the_hash_in_a_name_is_compared(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(b"abc")
    digest = sha256(path)
    assert digest.startswith("ba7816bf")
    assert checked_name(tmp_path / "resnet50-ba7816bf.pth", digest) == "as its name says"
    assert checked_name(tmp_path / "resnet50-00000000.pth", digest) == "its name says 00000000"
    assert checked_name(path, digest) == "the name holds no hash"


@pytest.mark.parametrize("around", ["", "model", "checkpoint"])
def test_what_a_checkpoint_says_of_itself_may_lie_inside_of_another(around, tmp_path):
    inner = under("state_dict", TENSOR) + text("meta") + under("config", text("a = 1")) + b"s"
    whole = under(around, inner) if around else inner
    write_zip(tmp_path / "x.pth", b"\x80\x02" + whole + b".", NUMBERS)
    assert read_foreign(tmp_path / "x.pth").meta == {"config": "a = 1"}


def test_a_checkpoint_of_lightning_is_read(tmp_path):
    kind = b"cpytorch_lightning.utilities.parsing\nAttributeDict\n"
    beside = text("hyper_parameters") + kind + b")R(" + text("lr") + b"K\x01us"
    inner = under("state_dict", under("model", TENSOR))
    write_zip(tmp_path / "x.ckpt", b"\x80\x02" + inner + beside + b".", NUMBERS)
    assert read_foreign(tmp_path / "x.ckpt").shapes == {"state_dict.model.w": (2, 4)}


# OmegaConf, EasyDict and dates, as pickled beside weights: types, and objects with a state.
BESIDE = (
    *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "typing.Any"),
    *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata", "omegaconf.nodes.AnyNode"),
    *("builtins.dict", "__builtin__.long", "easydict.EasyDict", "types.SimpleNamespace"),
    *("datetime.date", "datetime.timedelta", "datetime.timezone"),
)


@pytest.mark.parametrize("name", BESIDE)
def test_settings_and_dates_beside_the_weights_are_inert(name):
    inert: set[str] = set()
    kind = "c{}\n{}\n".format(*name.rsplit(".", 1)).encode()
    value = read_pickle(io.BytesIO(b"(" + kind + kind + b")R}" + kind + b"Nsbt."), inert)
    assert {part.name for part in value} == inert == {name}


POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f"
    b"32b1258daaa5e2ca24d17e2393\nsize 167502836\n"
)


def zipped(**members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/").replace("_DOT_", "."), content)
    return stream.getvalue()


def npz():
    stream = io.BytesIO()
    np.savez(stream, a=np.zeros(3))
    return stream.getvalue()


KINDS = [
    (b"", "an empty file"),
    (POINTER, r"a Git LFS pointer .*167502836 bytes.*git lfs pull"),
    (b"<!DOCTYPE html><html><body>Sign in", r"a web page \(HTML\).*download the file again"),
    (b"\n\n  <html>", "a web page"),
    (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an XML document"),
    (b'{"message": "Not Found"}', "a JSON document, no weights"),
    (b'{"images": [', "text that begins as JSON does"),
    (json.dumps({"metadata": {}, "weight_map": {"a": "b"}}).encode(), "the index of a model"),
    (b"404: Not Found", "text .*404: Not Found"),
    (b"\x89PNG\r\n\x1a\n" + b"\x00" * 40, r"an image \(PNG\)"),
    (b"\xff\xd8\xff\xe0" + b"\x00" * 40, r"an image \(JPEG\)"),
    (b"RIFF\x00\x00\x00\x00WEBPVP8 ", r"an image \(WebP\)"),
    (b"\x00\x00\x00\x18ftypmp42" + b"\x00" * 20, r"a video \(MP4\)"),
    (b"\x1f\x8b\x08" + b"\x00" * 30, "compressed by gzip; unpack it"),
    (b"\x89HDF\r\n\x1a\n" + b"\x00" * 30, "an HDF5 file"),
    (b"%PDF-1.7 and so on", "a PDF"),
    (b"\x93NUMPY\x01\x00", "a single NumPy array"),
    (b"a" * 257 + b"ustar" + b"0" * 300, "a tar file"),
    (b"\x00" * 300, "only zeros"),
    (b"PK\x03\x04 and no more", "cut short or damaged"),
    (npz(), r"an archive of NumPy arrays \(.npz\)"),
    (zipped(), "an empty zip file"),
    (zipped(readme_DOT_txt="x"), r"a zip file that torch.save did not write .*readme.txt"),
    (zipped(a__model_DOT_pth="x"), r"a zip archive around a/model.pth; unpack"),
    (zipped(a__data_DOT_pkl=tensor_pickle(8, (2, 4), (4, 1))), "cut short: storage 0 is not in it"),
    (bytes(range(150, 250)) * 3, "neither a file of torch.save nor safetensors"),
    (b"\x80\x02K\x01.", "neither a file of torch.save"),
    (b"\xef\xbb\xbf" + POINTER.replace(b"\n", b"\r\n"), r"a Git LFS pointer .*167502836 bytes"),
    (b"version https://hawser.github.com/spec/v1\nsize 5\n", "a Git LFS pointer"),
    (b"/annex/objects/MD5E-s167502836--abc.pth\n", "a git-annex pointer.*git annex get"),
    (b"outs:\n- md5: aaa\n  size: 5\n  path: x.pth\n", "a DVC pointer.*dvc pull"),
    ("<!DOCTYPE html><html>Sign in".encode("utf-16"), "a web page"),
    (b"<?xml version='1.0'?>\n<svg>", r"an image \(SVG\)"),
    (b"[" * 100_000, "text that begins as JSON does"),
    (b'{"a":' * 100_000, "text that begins as JSON does"),
    (b"\x00\x00\x00\x08wide\x00\x00\x00\x00mdat\xff\xff", r"a video \(QuickTime\)"),
    (b"\x00\x00\x01\xba\x44\xff" * 9, r"a video \(MPEG\)"),
    (b"FLV\x01\x05\xff\xff", r"a video \(FLV\)"),
    (b"\x08\x07\x12\x07pytorch\x1a\x051.9.0\xff", "an ONNX model"),
    (b"\x1c\x00\x00\x00TFL3\xff\xff", "TensorFlow Lite"),
]


@pytest.mark.parametrize(("content", "words"), KINDS)
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "x.pkl"])
def test_other_files_are_called_what_they_are(content, words, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: .*{words}"):
        load(tmp_path / name)


def test_short_files_of_endless_names_are_refused(tmp_path):
    """A prefix that is stored once, and a text that many keys share, would fill the memory."""
    tensor = TENSOR[TENSOR.index(b"ctorch") : -1]
    many = b"q\x01s" + b"".join(text(f"k{i}") + b"h\x01s" for i in range(20))
    prefix = under("p" * 2000, b"}" + text("first") + tensor + many)
    keys = b"}" + text("a" * 600) + b"q\x02" + tensor + b"q\x01s"
    keys += b"".join(b"h\x02h\x02K" + bytes([i]) + b"\x87h\x01s" for i in range(20))
    for inner in (prefix, keys):
        write_zip(tmp_path / "x.pth", b"\x80\x02" + inner + b".", NUMBERS)
        with pytest.raises(UserError, match=r"x\.pth: refused: a name of more than 1000 letters"):
            read_foreign(tmp_path / "x.pth")


def test_two_arrays_of_one_name_are_refused(tmp_path):
    write_torch(tmp_path / "x.pth", {"a.b": np.zeros(3), "a": {"b": np.ones(3)}})
    with pytest.raises(UserError, match=r"two arrays are called a\.b"):
        read_foreign(tmp_path / "x.pth")


def test_a_folder_and_a_file_that_is_not_there_are_named(tmp_path):
    with pytest.raises(UserError, match="a folder; name a file in it"):
        read_foreign(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path / "nobody.pth")


@pytest.mark.parametrize("keep", [4, 8, 9, 60, -1])
def test_safetensors_cut_short_anywhere_are_no_puzzle(keep, tmp_path):
    save_file({"w": np.zeros(8, np.float32)}, tmp_path / "x.safetensors")
    whole = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(whole[:keep])
    with pytest.raises(UserError, match=r"x.safetensors: "):
        load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("size", [19778, 19280, 35615])
def test_a_header_s_size_that_spells_another_kind_is_safetensors_still(size, tmp_path):
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).ljust(size)
    (tmp_path / "x").write_bytes(size.to_bytes(8, "little") + header.encode() + bytes(8))
    assert read_foreign(tmp_path / "x").shapes == {"w": (2,)}


def test_numbers_of_a_kind_that_numpy_has_not_are_told(tmp_path):
    header = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(UserError, match=r"a kind that is not read .*float8.*bfloat16"):
        read_foreign(tmp_path / "x")


def test_a_file_of_ours_whose_text_is_nested_endlessly_is_told(tmp_path):
    arrays = {"w": np.zeros(2, np.float32)}
    save_file(arrays, tmp_path / "x", {"drkd_jax": "[" * 100_000})
    with pytest.raises(UserError, match="not a whole file of ours"):
        load(tmp_path / "x")


def test_a_config_in_the_place_of_its_checkpoint_says_what_to_name(tmp_path):
    path = tmp_path / "retinanet_r50_fpn_2x_coco.py"
    path.write_text("model = dict(type='RetinaNet')\n")
    with pytest.raises(UserError, match=r"2x_coco\.py: a Python file.*name the checkpoint"):
        load(path)
