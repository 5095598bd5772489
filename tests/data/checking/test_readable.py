"""Files that would stop a run are reported before it starts."""

import dataclasses
import json

import cv2
import numpy as np
import pytest

from drkd_jax.data.checking.findings import require_readable
from drkd_jax.data.config import PipelineConfig
from drkd_jax.data.plan import train_fits
from drkd_jax.data.sources import open_source
from drkd_jax.errors import UserError
from drkd_jax.training.setup import open_sources

IMAGES = 100


@pytest.fixture
def content():
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": 40, "width": 40} for i in range(IMAGES)
        ],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [5, 5, 20, 20], "area": 400}
            for i in range(IMAGES)
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
    written, image = cv2.imencode(".png", np.zeros((40, 40, 3), np.uint8))
    assert written
    for i in set(range(IMAGES)) - set(broken):
        (tmp_path / f"{i}.png").write_bytes(image.tobytes())
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(content))
    source, read = open_source(f"coco:{tmp_path}:{file}", on_error), np.arange(most or IMAGES)
    if not refused:
        require_readable(source, "config.data.val", on_error, read)
        return
    with pytest.raises(UserError) as raised:
        require_readable(source, "config.data.val", on_error, read)
    said, looked = str(raised.value), most or IMAGES
    assert said.startswith(
        f"config.data.val = {source.spec}: {len(broken)} of {looked} image files are missing"
    )
    assert f". The first: image {tmp_path / f'{broken[0]}.png'} (id {broken[0]} in " in said
    # One in a hundred may be left out, and no more.
    assert ("data.on_error = skip" in said) == (len(broken) <= 0.01 * looked)


def test_an_image_that_training_leaves_out_may_be_missing(tmp_path, content):
    """Sets of only the annotated images often have the complete set's list of images."""
    written, image = cv2.imencode(".png", np.zeros((40, 40, 3), np.uint8))
    assert written
    for i in range(IMAGES):
        (tmp_path / f"{i}.png").write_bytes(image.tobytes())
    sound, file = tmp_path / "sound.json", tmp_path / "instances.json"
    sound.write_text(json.dumps(content))
    del content["annotations"][3]
    file.write_text(json.dumps(content))
    (tmp_path / "3.png").unlink()
    data = {"train": f"coco:{tmp_path}:{file}", "val": f"coco:{tmp_path}:{sound}"}
    config = PipelineConfig(batch_size=1, canvases=((40, 40),), shorter=40, longer=40)
    evaluation = {"max_images": 3}
    train, _, _ = open_sources({"data": data, "eval": evaluation}, config)
    assert 3 not in train_fits(train, config).indices
    for changed, key in (({"drop_empty": False}, "train"), ({}, "val")):
        pipeline = dataclasses.replace(config, **changed)
        with pytest.raises(UserError, match=rf"config\.data\.{key} = .*: 1 of 100 image files"):
            open_sources({"data": data, "eval": evaluation if changed else None}, pipeline)
    # Of two images that training reads one is more than one in a hundred.
    del content["annotations"][2:]
    file.write_text(json.dumps(content))
    (tmp_path / "1.png").unlink()
    skipping = dataclasses.replace(config, on_error="skip")
    with pytest.raises(UserError, match=r"config\.data\.train = .*: 1 of 2 image files"):
        open_sources({"data": data, "eval": evaluation}, skipping)
