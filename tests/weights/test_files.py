"""Where the weights lie in files that training programs write."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from drkd_jax.errors import UserError
from drkd_jax.weights.files import checked_name, is_safetensors, read_foreign, sha256
from tests.weights.test_torch_file import FIXTURES, tensor_pickle, write_zip

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
    with pytest.raises(UserError, match=r"x\.pth: holds no"):
        read_foreign(tmp_path / "x.pth")


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
