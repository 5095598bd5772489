"""A detector in a library's names, read back as `convert --to` advises, is unchanged."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors import safe_open

from drkd_jax.__main__ import main
from drkd_jax.models.conventions import CAFFE_PIXELS, conventions
from drkd_jax.weights.opening import load
from drkd_jax.weights.ours import About, write_ours
from tests.weights.small import NARROW, ONE_STAGE, SMALL, TWO_STAGE, random_arrays

NAMES = ("nut", "bolt", "pin")
SIZE = {"shorter": 64, "longer": 96}
CAFFE = dataclasses.asdict(CAFFE_PIXELS)
THEIRS = {"convention": "torchvision", "backbone": SMALL}
# settings and images of ours, names in the file, what is said of them, what has to be told.
CASES = {
    "mmdet in Caffe's style, of permuted outputs with gaps": (
        {
            **ONE_STAGE,
            "backbone": {**NARROW, "style": "caffe"},
            "head_classes": 5,
            "class_ids": (3, 0, 2),
        },
        CAFFE,
        ["bolt", "N/A", "pin", "nut", "N/A"],
        [
            "its backbone's style is caffe",
            "its classes' labels there are 3 nut, 0 bolt, 2 pin",
            "its images' channels is bgr, not rgb",
        ],
        {"backbone": {"style": "caffe"}, "data": CAFFE},
    ),
    "mmdet-2.3": (
        {**ONE_STAGE, "backbone": SMALL, "convention": "mmdet-2.3"},
        {},
        list(NAMES),
        ["it computes by the conventions of mmdet-2.3, not by those of mmdet"],
        {"convention": "mmdet-2.3"},
    ),
    "torchvision's Faster R-CNN, of permuted outputs with gaps": (
        {**TWO_STAGE, **THEIRS, "head_classes": 5, "class_ids": (4, 1, 2)},
        {},
        ["N/A", "bolt", "pin", "N/A", "nut"],
        ["its num_classes is 6 there", "its classes' labels there are 5 nut, 2 bolt, 3 pin"],
        {},
    ),
    "torchvision's RetinaNet, whose training counted the background": (
        {**ONE_STAGE, **THEIRS, "head_classes": 4, "class_ids": (2, 1, 3)},
        {"resize": "mmdet"},
        ["__background__", "bolt", "nut", "pin"],
        [
            "its classes' labels there are 2 nut, 1 bolt, 3 pin",
            "its images are resized by the rule of mmdet, not of torchvision",
        ],
        {"data": {"resize": "mmdet"}},
    ),
}


def there_and_back(case, folder):
    """(our detector, the one read back from the file in the library's names)."""
    settings, data, _, _, told = CASES[case]
    convention = settings.get("convention", "mmdet")
    arrays = random_arrays("detector", settings, 3)
    arrays["head.cls.kernel" if "head.cls.kernel" in arrays else "roi.cls.kernel"] *= 0.03
    categories = tuple(zip((7, 3, 90), NAMES, strict=True))  # ids of a COCO file, in no order
    pixels = dataclasses.asdict(conventions(convention).pixels)
    about = About("detector", settings, 3, categories, {}, {**pixels, **data, **SIZE})
    ours, theirs = (folder / f"{name}.safetensors" for name in ("ours", "theirs"))
    write_ours(ours, arrays, about)
    assert main(["convert", f"--to={convention.split('-')[0]}", str(ours), str(theirs)]) == 0
    back = load(theirs, told)
    # How large its images are is said, and asked for where it is evaluated.
    back = dataclasses.replace(
        back, about=dataclasses.replace(back.about, data={**back.about.data, **SIZE})
    )
    return load(ours), back


def outputs(weights):
    """The head's output of each class, by class name."""
    names = (category.name for category in weights.categories)
    return dict(zip(names, weights.detector().class_ids, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_what_is_said_makes_it_the_same_detector(case, tmp_path, capsys):
    ours, back = there_and_back(case, tmp_path)
    _, _, names, said, _ = CASES[case]
    printed = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert not set(said) - set(printed)
    with safe_open(back.path, framework="numpy") as stream:
        assert json.loads(stream.metadata()["classes"]) == names
    assert outputs(back) == outputs(ours)
    models = [weights.model() for weights in (ours, back)]
    assert len({model.head_classes for model in models}) == 1
    told_apart = "backbone", "test", "proposals", "delta_stds", "convention", "extra", "extra_relu"
    for key in told_apart:
        first, second = (getattr(model.settings, key, None) for model in models)
        if key == "backbone":  # batch norm's statistics are constant in either
            first, second = (dataclasses.replace(b, norm="bn") for b in (first, second))
        assert first == second, key
    assert back.pixels == ours.pixels
    assert back.pipeline() == ours.pipeline()


def test_it_finds_the_same_objects(tmp_path):
    image = np.random.default_rng(5).integers(0, 255, (60, 90, 3), np.uint8)
    found = []
    for weights in there_and_back(next(iter(CASES)), tmp_path):
        objects = weights.predict(image)
        names = [weights.categories[label].name for label in objects.labels]
        found.append((names, objects.scores, objects.boxes))
    assert len(found[0][0]) > 10
    assert len(set(found[0][0])) == 3
    assert found[0][0] == found[1][0]
    for one, other in zip(found[0][1:], found[1][1:], strict=True):
        np.testing.assert_array_equal(one, other)
