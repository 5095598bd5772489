"""Files that a run would stop at are known before it starts."""

import json

import cv2
import numpy as np
import pytest

from drkd_jax.data.checking.findings import require_readable
from drkd_jax.data.sources import open_source
from drkd_jax.errors import UserError

PICTURES = 100


@pytest.fixture(scope="module")
def content():
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": 40, "width": 40} for i in range(PICTURES)
        ],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [5, 5, 20, 20], "area": 400}
            for i in range(PICTURES)
        ],
        "categories": [{"id": 1, "name": "nut"}],
    }


@pytest.mark.parametrize(
    ("on_error", "most", "broken", "refused"),
    [
        ("stop", 0, [2], True),
        ("stop", 2, [2], False),
        ("stop", 3, [2], True),
        ("skip", 0, [2], False),
        ("skip", 0, [2, 3], True),
        ("stop", 0, [], False),
    ],
)
def test_files_that_a_run_would_stop_at_are_refused(
    tmp_path, content, on_error, most, broken, refused
):
    written, picture = cv2.imencode(".png", np.zeros((40, 40, 3), np.uint8))
    assert written
    for i in set(range(PICTURES)) - set(broken):
        (tmp_path / f"{i}.png").write_bytes(picture.tobytes())
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(content))
    source = open_source(f"coco:{tmp_path}:{file}", on_error)
    if not refused:
        require_readable(source, "config.data.val", on_error, most)
        return
    with pytest.raises(UserError) as raised:
        require_readable(source, "config.data.val", on_error, most)
    said, looked = str(raised.value), most or PICTURES
    assert said.startswith(
        f"config.data.val = {source.spec}: {len(broken)} of {looked} picture files are missing"
    )
    assert f". The first: picture {tmp_path / f'{broken[0]}.png'} (id {broken[0]} in " in said
    # One in a hundred may be left out, and no more.
    assert ("data.on_error = skip" in said) == (len(broken) <= 0.01 * looked)
