from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from drkd_jax.data.sources import Source, open_source
from drkd_jax.data.sources.classes import COCO_CATEGORIES
from drkd_jax.data.sources.coco import CocoSource
from drkd_jax.data.sources.prepare import prepare_tfds
from drkd_jax.errors import UserError
from tests.data.conftest import CocoFolder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[CocoFolder, Path]:
    """Both splits of one data folder, created in sequence from the same small set."""
    root = tmp_path_factory.mktemp("tfds")
    folder = CocoFolder(root / "set")
    for split in ("train", "validation"):
        prepare_tfds(folder.images, folder.json, split, root / "data")
    return folder, root / "data"


def assert_same(tfds_source: Source, coco_source: Source) -> None:
    """Checks for the same images, in any order, with the same boxes to 0.01 pixel."""
    place = {coco_source.meta(i).image_id: i for i in range(len(coco_source))}
    assert len(tfds_source) == len(coco_source)
    for i in range(len(tfds_source)):
        ours = tfds_source.record(i)
        theirs = coco_source.record(place.pop(ours.image_id))
        np.testing.assert_array_equal(ours.image, theirs.image)
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=0.01)
        np.testing.assert_array_equal(ours.crowd, theirs.crowd)
        our_ids = [tfds_source.categories[label].id for label in ours.labels]
        assert our_ids == [coco_source.categories[label].id for label in theirs.labels]
        assert tfds_source.meta(i).num_boxes == int((~theirs.crowd).sum())
    assert not place


@pytest.mark.parametrize("split", ["train", "validation"])
def test_small_set_comes_back(prepared, split):
    folder, data_dir = prepared
    source = open_source(f"tfds:coco/2017:{split}@{data_dir}")
    assert source.categories == COCO_CATEGORIES
    assert_same(source, CocoSource(folder.images, folder.json))


def _by_id(rows: list[dict]) -> list[dict]:
    return sorted(rows, key=lambda row: row["id"])


def test_scored_against_the_json_where_it_is_at_hand(prepared, tmp_path):
    folder, data_dir = prepared
    source = open_source(f"tfds:coco/2017:train@{data_dir}")
    truth = source.coco_ground_truth()
    assert _by_id(truth["annotations"]) == _by_id(folder.content["annotations"])
    rounded = source.table.ground_truth()["annotations"]
    exact = {a["id"]: a["area"] for a in folder.content["annotations"]}
    assert any(a["area"] != exact[a["id"]] for a in rounded)  # why the json is kept
    assert all(abs(a["area"] - exact[a["id"]]) <= 0.5 for a in rounded)


def test_a_slice_has_its_own_ground_truth(prepared):
    _, data_dir = prepared
    source = open_source(f"tfds:coco/2017:train[:2]@{data_dir}")
    assert len(source) == 2
    ids = {source.meta(i).image_id for i in range(2)}
    truth = source.coco_ground_truth()
    assert {image["id"] for image in truth["images"]} == ids
    assert {a["image_id"] for a in truth["annotations"]} <= ids


def test_index_is_kept_and_made_again_for_other_records(prepared, monkeypatch):
    _, data_dir = prepared
    spec = f"tfds:coco/2017:train@{data_dir}"
    first = open_source(spec).table

    def no_scan(*_):
        raise AssertionError("scanned again")

    with monkeypatch.context() as patch:
        patch.setattr("drkd_jax.data.sources.tfds._scan", no_scan)
        again = open_source(spec).table
        np.testing.assert_array_equal(again.bbox, first.bbox)
        assert again.names == first.names
        index = next(data_dir.glob("coco/2017/*/index_train.npz"))
        index.write_bytes(b"broken")
        with pytest.raises(AssertionError, match="scanned again"):
            open_source(spec)
    assert open_source(spec).table.names == first.names


@pytest.mark.parametrize("left", [0, 100, -200])
def test_what_is_left_of_an_index_is_made_again(prepared, left):
    _, data_dir = prepared
    spec = f"tfds:coco/2017:train@{data_dir}"
    names = open_source(spec).table.names
    index = next(data_dir.glob("coco/2017/*/index_train.npz"))
    index.write_bytes(index.read_bytes()[:left])
    assert open_source(spec).table.names == names


@pytest.mark.parametrize("left", [0, 100])
def test_records_that_are_cut_or_gone_are_named(coco_folder, tmp_path, left):
    folder = prepare_tfds(coco_folder.images, coco_folder.json, "train", tmp_path / "data")
    spec = f"tfds:coco/2017:train@{tmp_path / 'data'}"
    whole = open_source(spec)
    (records,) = folder.glob("*.array_record*")
    records.write_bytes(records.read_bytes()[:left])
    with pytest.raises(UserError, match=r"1\.1\.0 \(train\): record 0 cannot be read \("):
        open_source(spec)
    with pytest.raises(UserError, match=rf"^{spec}: record 2 cannot be read \("):
        whole.record(2)
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match=r"dataset_info\.json cannot be read"):
        open_source(spec)


@pytest.mark.parametrize("part", ["train[abc]", "train[:0]", "train[9:]"])
def test_a_part_that_is_none_is_one_line(prepared, part):
    with pytest.raises(UserError, match="cannot be read") as raised:
        open_source(f"tfds:coco/2017:{part}@{prepared[1]}")
    assert part in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "file_format" not in str(raised.value)  # which is as it should be


def test_what_tfds_has_no_place_for(coco_folder, tmp_path):
    coco_folder.content["images"][3] |= {"file_name": "a.jpg", "height": 60, "width": 80}
    coco_folder.write()
    with pytest.raises(UserError, match=r"a\.jpg is the image of several entries"):
        prepare_tfds(coco_folder.images, coco_folder.json, "train", tmp_path)
    coco_folder.content["categories"] += [{"id": "x", "name": "x"}, {"id": 5, "name": "y"}]
    coco_folder.write()
    with pytest.raises(UserError, match="no class 5 'y', x 'x'"):
        prepare_tfds(coco_folder.images, coco_folder.json, "train", tmp_path)


def test_picklable(prepared):
    source = open_source(f"tfds:coco/2017:train@{prepared[1]}")
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.record(1).image, source.record(1).image)


def test_reads_without_tensorflow(prepared):
    code = (
        "import sys\n"
        "from drkd_jax.data.sources import open_source\n"
        f"print(len(open_source('tfds:coco/2017:train@{prepared[1]}').record(0).boxes))\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    root = Path(__file__).resolve().parents[3]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_faults(prepared, coco_folder, tmp_path):
    folder, data_dir = prepared
    with pytest.raises(UserError, match="already has the split 'train'"):
        prepare_tfds(folder.images, folder.json, "train", data_dir)
    with pytest.raises(UserError, match="has no split 'test'; it has train, validation"):
        open_source(f"tfds:coco/2017:test@{data_dir}")
    with pytest.raises(UserError, match=r"no prepared dataset .*prepare tfds:coco/2017 --split="):
        open_source(f"tfds:coco/2017:train@{tmp_path / 'none'}")
    with pytest.raises(UserError, match="split 'val'"):
        prepare_tfds(folder.images, folder.json, "val", tmp_path / "data")
    (coco_folder.images / "b.jpg").unlink()
    with pytest.raises(UserError, match=r"b\.jpg \(id 3\) does not exist"):
        prepare_tfds(coco_folder.images, coco_folder.json, "train", tmp_path / "data")
    coco_folder.content["categories"][0]["name"] = "dragon"
    coco_folder.write()
    with pytest.raises(UserError, match="no class 90 'dragon'"):
        prepare_tfds(coco_folder.images, coco_folder.json, "train", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_boxes_over_the_edge_can_be_prepared(coco_folder, tmp_path, capsys):
    """So can boxes with a negative side, which training leaves out."""
    first, second, _, third, *_ = coco_folder.content["annotations"]
    first["bbox"], second["bbox"] = [-5.0, -5.0, 20.0, 20.0], [200.0, 10.0, 20.0, 20.0]
    third |= {"bbox": [30.0, 50.0, -10.0, 20.0], "area": 200.0}
    coco_folder.write()
    prepare_tfds(coco_folder.images, coco_folder.json, "train", tmp_path / "data")
    assert ".prepare-" not in capsys.readouterr().out  # a folder that is gone
    source = open_source(f"tfds:coco/2017:train@{tmp_path / 'data'}")
    assert_same(source, CocoSource(coco_folder.images, coco_folder.json))


@pytest.mark.parametrize(
    ("size", "told"), [((30, 40), ""), ((80, 60), ", or, where the file's EXIF")]
)
def test_a_size_that_would_stretch_boxes_is_refused(coco_folder, tmp_path, size, told):
    """Boxes are stored as shares of the stored size."""
    coco_folder.content["images"][0] |= {"height": size[0], "width": size[1]}
    coco_folder.write()
    said = (
        rf"a\.jpg: the file is stored as 80x60 pixels \(width x height\), its annotations say "
        rf"{size[1]}x{size[0]}; correct the one that is wrong{told}"
    )
    with pytest.raises(UserError, match=said):
        prepare_tfds(coco_folder.images, coco_folder.json, "train", tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())


def test_real_set(coco_sample, tmp_path):
    images, instances = coco_sample / "images", coco_sample / "instances_val.json"
    prepare_tfds(images, instances, "validation", tmp_path)
    source = open_source(f"tfds:coco/2017:validation@{tmp_path}")
    original = CocoSource(images, instances)
    assert original.categories == COCO_CATEGORIES
    assert_same(source, original)
    assert _by_id(source.coco_ground_truth()["annotations"]) == _by_id(
        original.coco_ground_truth()["annotations"]
    )
