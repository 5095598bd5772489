"""Writes files in the format of torch.save without torch: nested dicts of float32 arrays."""

import pickle
import struct
import zipfile

import numpy as np


def write_torch(path, value):
    """Writes `value` as a zip file of torch.save: dicts, arrays, and other picklable values."""
    arrays = []
    pickled = b"\x80\x02" + _pickled(value, arrays) + b"."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for number, array in enumerate(arrays):
            archive.writestr(f"archive/data/{number}", array.tobytes())


def _pickled(value, arrays):
    if isinstance(value, dict):
        items = b"".join(_text(str(key)) + _pickled(item, arrays) for key, item in value.items())
        return b"}(" + items + b"u"
    if not isinstance(value, np.ndarray):
        return pickle.dumps(value, 2)[2:-1]
    array = np.ascontiguousarray(value, np.float32)
    name, steps = str(len(arrays)), np.array(array.strides) // 4
    arrays.append(array)
    storage = b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text(name) + _text("cpu")
    storage += _integer(array.size) + b"tQ"
    whole = [_integer(0), _integers(array.shape), _integers(steps)]
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"".join(whole) + b"\x89NtR"


def _text(word):
    return b"X" + struct.pack("<I", len(word.encode())) + word.encode()


def _integer(value):
    return b"J" + struct.pack("<i", int(value))


def _integers(values):
    return b"(" + b"".join(map(_integer, values)) + b"t"
