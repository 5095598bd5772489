from __future__ import annotations

import os

import pytest

from drkd_jax.data.sources import open_source
from drkd_jax.errors import UserError
from tests.data.conftest import CocoFolder


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "shapes",
        "shapes:",
        "shapes:0",
        "shapes:x",
        "shapes:-3",
        "shapes:3:x",
        "shapes:3:1:1",
        "coco:",
        "coco:only_one",
        "coco::x.json",
        "tfds:coco/2017",
        "tfds:coco/2017:",
        "tfds::train",
        "tfds:voc/2007:train",
        "images:here",
    ],
)
def test_bad_names(spec):
    with pytest.raises(UserError):
        open_source(spec)


def test_seed_is_part_of_the_name():
    assert open_source("shapes:3").spec == "shapes:3:0"
    assert open_source("shapes:3:7").spec == "shapes:3:7"
    assert len(open_source("shapes:3")) == 3


def test_relative_and_absolute_paths_and_colons(tmp_path, monkeypatch):
    folder = CocoFolder(tmp_path / "a:b")
    assert len(open_source(folder.spec)) == 4
    monkeypatch.chdir(folder.images.parent)
    assert len(open_source("coco:images:instances.json")) == 4
    assert len(open_source(f"coco:./images:{os.path.relpath(folder.json)}")) == 4
