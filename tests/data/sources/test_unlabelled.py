"""Pictures without labels: where they come from, which they are, and how often they come."""

import dataclasses
import io

import cv2
import numpy as np
import pytest
from PIL import Image

from drkd_jax.data.config import PipelineConfig
from drkd_jax.data.plan import kept_indices, mixed, train_fits
from drkd_jax.data.sources import open_source
from drkd_jax.data.sources.unlabelled import PictureFolder, WithUnlabelled, labelled_part
from drkd_jax.errors import UserError

CONFIG = PipelineConfig(
    batch_size=2, canvases=((64, 64),), shorter=64, longer=64, max_boxes=4, drop_empty=True
)


def write(path, height, width, orientation=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(
        file, "JPEG" if path.suffix == ".jpg" else "PNG", exif=exif
    )
    path.write_bytes(file.getvalue())


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "more"
    write(folder / "b.png", 40, 64)
    write(folder / "deep" / "a.jpg", 48, 36, orientation=6)
    write(folder / "tiny.jpg", 20, 50)
    write(folder / ".hidden.png", 40, 40)
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_a_folder_s_pictures_are_found_with_their_sizes(pictures):
    source = open_source(f"pictures:{pictures}")
    assert isinstance(source, PictureFolder)
    assert source.table.names == ("b.png", "tiny.jpg", "deep/a.jpg")
    assert source.table.sizes.tolist() == [[40, 64], [20, 50], [36, 48]]  # the last one lies
    for index in range(3):
        record = source.record(index)
        assert record.image.shape[:2] == tuple(source.table.sizes[index])
        assert len(record.boxes) == len(record.labels) == 0
    assert not source.scan.broken.any()


@pytest.mark.parametrize(
    ("folder", "said"),
    [("gone", "gone does not exist; the form is pictures:DIR"), ("empty", "holds no picture")],
)
def test_a_folder_without_pictures_is_refused(tmp_path, folder, said):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=said):
        open_source(f"pictures:{tmp_path / folder}")


def test_a_broken_file_of_a_folder_is_known_and_named(pictures):
    (pictures / "b.png").write_bytes(b"")
    source = open_source(f"pictures:{pictures}")
    assert source.scan.broken.tolist() == [True, False, False]
    with pytest.raises(UserError, match=r"b\.png"):
        source.record(0)


def test_annotations_are_left_aside_and_pictures_of_both_come_once(coco_folder, pictures):
    labelled = open_source(coco_folder.spec)
    write(coco_folder.images / "more.png", 50, 50)
    rows = coco_folder.content["images"]
    rows.append({"id": 50, "file_name": "more.png", "height": 50, "width": 50})
    coco_folder.content["annotations"].append(
        {"id": 900, "image_id": 50, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81}
    )
    coco_folder.write()
    whole = WithUnlabelled(labelled, open_source(coco_folder.spec))
    assert whole.num_labelled == len(labelled) == len(whole) - 1
    assert whole.categories == labelled.categories
    assert labelled_part(whole) is labelled
    assert labelled_part(labelled) is labelled
    record = whole.record(len(labelled))
    assert record.name.endswith("more.png")
    assert len(record.boxes) == len(record.labels) == len(record.crowd) == 0
    assert whole.table.num_boxes[-1] == 0
    for index in range(len(labelled)):
        ours, theirs = whole.record(index), labelled.record(index)
        np.testing.assert_array_equal(ours.boxes, theirs.boxes)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
    with pytest.raises(UserError, match="every picture of it is one of"):
        WithUnlabelled(labelled, labelled)


def test_pictures_without_labels_are_not_left_out_as_empty_ones_are(coco_folder, pictures):
    labelled = open_source(coco_folder.spec)
    whole = WithUnlabelled(labelled, open_source(f"pictures:{pictures}"))
    seen = set(kept_indices(labelled, CONFIG).tolist())
    assert len(seen) == 2  # of its four pictures two have no box
    more = {4, 6}  # tiny.jpg is under 32 pixels
    assert set(kept_indices(whole, CONFIG).tolist()) == seen | more
    every = dataclasses.replace(CONFIG, drop_empty=False)
    assert set(kept_indices(whole, every).tolist()) == {0, 1, 2, 3} | more
    assert sorted(train_fits(whole, CONFIG).indices.tolist()) == sorted(seen | more)


@pytest.mark.parametrize(
    ("labelled", "others", "share", "times"),
    [
        (84, 336, 0.5, (4, 1)),
        (84, 336, 0.8, (1, 1)),
        (84, 336, 0.9, (1, 2)),
        (100, 30, 0.5, (1, 3)),
        (3, 1000, 0.5, (333, 1)),
        (5, 5, 0.5, (1, 1)),
    ],
)
def test_the_fewer_ones_are_repeated_to_come_near_the_share(labelled, others, share, times):
    kept = np.arange(labelled + others)
    counts = np.bincount(mixed(kept, labelled, share), minlength=len(kept))
    assert set(counts[:labelled].tolist()) == {times[0]}
    assert set(counts[labelled:].tolist()) == {times[1]}
    np.testing.assert_array_equal(mixed(kept[:labelled], labelled, share), kept[:labelled])


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_a_share_of_none_or_all_is_refused(share):
    with pytest.raises(UserError, match="unlabelled_share"):
        dataclasses.replace(CONFIG, unlabelled_share=share)


def test_a_png_s_size_is_read_from_its_header():
    from drkd_jax.data.decode import stored_size

    _, data = cv2.imencode(".png", np.zeros((7, 5, 3), np.uint8))
    assert stored_size(data.tobytes()[:40], "x") == (7, 5)
