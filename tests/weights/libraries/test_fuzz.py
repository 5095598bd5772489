"""After any change of a file's keys, all are accounted for, and none is misused."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drkd_jax.errors import UserError
from drkd_jax.weights.libraries.understanding import understand
from tests.weights.small import foreign

NAMES = ("mmdet retinanet", "mmdet faster_rcnn", "torchvision faster_rcnn")


def shapes_of(name):
    return {key: value.shape for key, value in foreign(name)[1].items()}


def damaged(draw, shapes):
    """One to three changes: dropped, renamed or added keys, other shapes; and a description."""
    changed, done = dict(shapes), []
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from(sorted(changed)))
        kind = draw(st.sampled_from(["drop", "rename", "add", "shape", "axes"]))
        if kind == "drop":
            del changed[key]
        elif kind == "rename":
            changed[key + draw(st.sampled_from(["x", ".weight", ".0"]))] = changed.pop(key)
        elif kind == "add":
            changed[draw(st.sampled_from(["backbone.extra", "neck.more", "x", "rpn.y"]))] = (3,)
        elif kind == "axes":
            changed[key] = (*changed[key], draw(st.integers(0, 4)))
        else:
            shape = list(changed[key])
            shape[draw(st.integers(0, len(shape) - 1))] += draw(st.sampled_from([1, -1, 7]))
            changed[key] = tuple(shape)
        done.append((kind, key))
    return changed, done


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_no_change_of_names_or_shapes_goes_unseen(name, data):
    shapes = shapes_of(name)
    changed, done = damaged(data.draw, shapes)
    data_note = f"{done}"
    try:
        found = understand(changed, {}, Path("x.pth"), {})
    except UserError:
        return
    report = found.report
    everything = [*report.used, *report.skipped, *report.unexpected, *report.misshapen]
    assert sorted(everything) == sorted(changed), data_note  # each key once, none lost
    if changed == shapes:
        assert report.whole
        return
    whole = understand(shapes, {}, Path("x.pth"), {})
    another = found.settings != whole.settings or found.spec.num_classes != whole.spec.num_classes
    for key in report.used:  # with another shape only where the file shows another model
        assert another or changed[key] == shapes.get(key, changed[key]), data_note
    if report.whole:
        # Then the file shows another model, or what was changed is skipped by name.
        assert another or report.skipped != whole.report.skipped, data_note
    else:
        assert report.faults(), data_note
        with pytest.raises(UserError, match=r"missing|unexpected|of another shape"):
            report.check("x.pth")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("position", [0.1, 0.5, 0.95])
def test_a_fault_is_named_with_key_and_shape(name, position):
    shapes = shapes_of(name)
    keys = [key for key in sorted(shapes) if key.endswith("bn2.weight") or ".fc6.bias" in key]
    key = keys[int(len(keys) * position)]
    shape = shapes[key]

    less = {k: v for k, v in shapes.items() if k != key}
    with pytest.raises(UserError, match=rf"1 missing: {key} \({shape[0]},\)"):
        understand(less, {}, Path("x.pth"), {}).report.check("x.pth")

    more = {**shapes, "backbone.unknown": (2, 5)}
    with pytest.raises(UserError, match=r"1 unexpected: backbone.unknown \(2, 5\)"):
        understand(more, {}, Path("x.pth"), {}).report.check("x.pth")

    other = {**shapes, key: (shape[0] + 1,)}
    with pytest.raises(UserError, match=rf"{key} \({shape[0] + 1},\), not \({shape[0]},\)"):
        understand(other, {}, Path("x.pth"), {}).report.check("x.pth")

    renamed = {(k + "_v2" if k == key else k): v for k, v in shapes.items()}
    with pytest.raises(UserError, match=rf"1 missing: {key}.*1 unexpected: {key}_v2"):
        understand(renamed, {}, Path("x.pth"), {}).report.check("x.pth")
