"""The whole distiller: masks, empty images, states, pairs of different detectors."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from drkd_jax.distill import DistillConfig, distill_config, relation_features, relation_matrix
from drkd_jax.errors import UserError
from drkd_jax.types import Features, Targets
from tests.distill.common import Runner, call, make, pyramid, relative, settings, targets

STUDENT, TEACHER = pyramid(0, 6), pyramid(1, 10)
FORMS = ("paper", "official")


@pytest.fixture(scope="module", params=FORMS)
def runner(request):
    return Runner(settings(request.param), STUDENT, TEACHER)


@pytest.fixture(scope="module")
def paper():
    return Runner(settings("paper"), STUDENT, TEACHER)


def test_all_terms_are_positive_and_named(runner):
    losses = runner.losses(STUDENT, TEACHER, targets())
    assert set(losses) == {"pixel_relation", "instance_relation", "instance_feature"}
    assert all(value > 0 for value in losses.values())
    assert set(runner.distiller.weights) == set(losses)


@pytest.mark.parametrize("counts", [(0, 0), (0, 1), (1, 1)])
def test_few_boxes_give_finite_gradients(runner, counts):
    given = targets(counts)
    (_, (output, rest)), gradients = runner.differentiate(
        runner.params, runner.rest, STUDENT, TEACHER, given
    )
    for leaf in jax.tree.leaves((gradients, rest)):
        assert np.isfinite(np.asarray(leaf)).all()
    if counts == (0, 0):
        assert float(output.losses["instance_feature"]) == 0
        assert float(output.losses["instance_relation"]) == 0
    if counts == (1, 1):
        assert float(output.losses["instance_feature"]) > 0


def test_one_box_has_no_relation_in_the_paper_form(paper):
    losses = paper.losses(STUDENT, TEACHER, targets((1, 1)))
    assert losses["instance_relation"] == 0


def test_equal_sides_have_loss_0_and_finite_gradients():
    """The plain norm at 0: torch.dist has gradient 0 there, a bare root has none."""
    same = settings("official", teacher_modules="shared")
    same["instance_relation"] = None
    runner = Runner(same, TEACHER, TEACHER)
    zero = jax.tree.map(jnp.zeros_like, TEACHER)
    (_, (output, _)), gradients = runner.differentiate(
        runner.params, runner.rest, zero, zero, targets((0, 0))
    )
    assert float(output.losses["instance_feature"]) == 0
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(gradients))


def _padding(features: Features, value: float) -> Features:
    """The same features with other numbers outside the images of 32 x 44 pixels."""
    maps = []
    for x, stride in zip(features.maps, features.spec.strides, strict=True):
        rows, columns = -(-32 // stride), -(-44 // stride)
        inside = np.zeros(x.shape[1:3], bool)
        inside[:rows, :columns] = True
        maps.append(jnp.where(inside[None, :, :, None], x, value))
    return Features(tuple(maps), features.spec)


def test_padded_pixels_do_not_count(paper):
    boxes = targets().boxes.at[:, 0].set(jnp.asarray((20.0, 8.0, 44.0, 32.0)))  # up to the edge
    given = targets()._replace(boxes=boxes)
    expected = paper.losses(STUDENT, TEACHER, given)
    sides = _padding(STUDENT, 7.0), _padding(TEACHER, -5.0)
    assert paper.losses(*sides, given) == pytest.approx(expected, rel=1e-6)


def test_padded_pixels_do_count_in_the_official_form():
    runner = Runner(settings("official"), STUDENT, TEACHER)
    expected = runner.losses(STUDENT, TEACHER, targets())["pixel_relation"]
    sides = _padding(STUDENT, 7.0), _padding(TEACHER, -5.0)
    assert abs(runner.losses(*sides, targets())["pixel_relation"] / expected - 1) > 0.1


def test_padded_rows_and_filling_images_do_not_count(paper):
    given = targets()
    garbage = np.where(given.valid[..., None], given.boxes, (5.0, 900.0, -30.0, 1e4))
    expected = paper.losses(STUDENT, TEACHER, given)
    found = paper.losses(STUDENT, TEACHER, given._replace(boxes=jnp.asarray(garbage, jnp.float32)))
    assert found == pytest.approx(expected, rel=1e-6)

    def alone(features: Features, fill: float) -> Features:
        maps = tuple(x.at[1].set(fill) for x in features.maps)
        return Features(maps, features.spec)

    filling = given._replace(image_valid=jnp.asarray([True, False]))
    results = [paper.losses(alone(STUDENT, v), alone(TEACHER, -v), filling) for v in (1.0, 50.0)]
    assert results[0] == pytest.approx(results[1], rel=1e-6)
    assert all(value > 0 for value in results[0].values())


def test_no_valid_image_at_all_is_0_and_keeps_the_running_statistics(runner):
    none = targets()._replace(image_valid=jnp.zeros(2, bool))
    (total, (_, rest)), gradients = runner.differentiate(
        runner.params, runner.rest, STUDENT, TEACHER, none
    )
    assert float(total) == 0
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(gradients))
    for before, after in zip(jax.tree.leaves(runner.rest), jax.tree.leaves(rest), strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_step_moves_the_running_statistics_only(paper):
    _, rest = paper.run(paper.params, paper.rest, STUDENT, TEACHER, targets())
    before, after = (dict(nnx.to_flat_state(state)) for state in (paper.rest, rest))
    moved = {path for path in before if relative(after[path][...], before[path][...]) > 0}
    assert {path[-1] for path in moved} == {"mean", "variance"}
    assert {path[:2] for path in moved} == {
        ("pixel_relation", "student"),
        ("pixel_relation", "teacher"),
        ("teacher_scale", "variance"),
    }


def test_splitting_the_batch_changes_nothing_with_running_statistics(paper):
    """Each part is weighted by its count: pixels, images with a choice, boxes."""
    given = targets((4, 3))
    _, rest = paper.run(paper.params, paper.rest, STUDENT, TEACHER, given)

    def losses(sides: tuple[Features, ...], part: Targets) -> dict[str, float]:
        output, _ = paper.run(paper.params, rest, *sides, part, train=False)
        return {name: float(value) for name, value in output.losses.items()}

    def part(i: int) -> dict[str, float]:
        cut = (Features(tuple(x[i : i + 1] for x in f.maps), f.spec) for f in (STUDENT, TEACHER))
        return losses(tuple(cut), jax.tree.map(lambda x: x[i : i + 1], given))

    whole = losses((STUDENT, TEACHER), given)
    parts = part(0), part(1)
    for name, shares in (
        ("pixel_relation", (0.5, 0.5)),
        ("instance_relation", (0.5, 0.5)),
        ("instance_feature", (4 / 7, 3 / 7)),
    ):
        mean = sum(share * found[name] for share, found in zip(shares, parts, strict=True))
        assert whole[name] == pytest.approx(mean, rel=1e-5)


def test_official_groups_are_devices_of_their_own():
    """Four images in groups of two: the mean of two batches of two."""
    runner = Runner(settings("official"), STUDENT, TEACHER)
    sides = pyramid(2, 6, images=4), pyramid(3, 10, images=4)
    given = targets((3, 2, 4, 0))
    whole = runner.losses(*sides, given)

    def half(i: int) -> dict[str, float]:
        cut = (Features(tuple(x[i : i + 2] for x in f.maps), f.spec) for f in sides)
        return runner.losses(*cut, jax.tree.map(lambda x: x[i : i + 2], given))

    first, last = half(0), half(2)
    for name, value in whole.items():
        assert value == pytest.approx((first[name] + last[name]) / 2, rel=1e-5)


def test_an_official_batch_that_is_no_whole_number_of_groups_is_refused():
    sides = pyramid(2, 6, images=3), pyramid(3, 10, images=3)
    with pytest.raises(UserError, match="images_per_device"):
        call(make(settings("official"), *sides), *sides, targets((1, 1, 1)))


def test_eager_equals_jit():
    one = pyramid(0, 6, (8,)), pyramid(1, 10, (8,))
    runner = Runner(settings(), *one)
    module = nnx.merge(runner.graph, runner.params, runner.rest, copy=True)
    eager = call(module, *one, targets()).losses
    expected = runner.losses(*one, targets())
    assert {name: float(value) for name, value in eager.items()} == pytest.approx(expected, 1e-5)


def test_teacher_with_another_pyramid_is_cut_with_its_own_stride():
    """A teacher from P2 on and a student from P3 on: the levels of strides 8 and 16 are paired."""
    teacher = pyramid(1, 10, strides=(4, 8, 16))
    same = Features(teacher.maps[1:], pyramid(1, 10).spec)
    wide = Runner(settings(), STUDENT, teacher)
    assert [pair.teacher for pair in wide.distiller.pairs] == [1, 2]
    narrow = Runner(settings(), STUDENT, same)
    found = wide.losses(STUDENT, teacher, targets())
    assert found == pytest.approx(narrow.losses(STUDENT, same, targets()), rel=1e-6)


def test_maps_of_other_sides_are_refused_by_level():
    cut = Features(tuple(x[:, :, 1:] for x in TEACHER.maps), TEACHER.spec)
    with pytest.raises(UserError, match=r"stride 8 the student's map .*, 6, 8, .*, 6, 7, "):
        call(make(settings(), STUDENT, TEACHER), STUDENT, cut, targets())


def test_max_boxes_says_how_many_are_left_out():
    runner = Runner({**settings(), "max_boxes": 2}, STUDENT, TEACHER)
    output, _ = runner.run(runner.params, runner.rest, STUDENT, TEACHER, targets((4, 3)))
    assert float(output.diagnostics["boxes"]) == 4
    assert float(output.diagnostics["boxes_left_out"]) == 3


@pytest.mark.parametrize("way", ["trained", "frozen", "shared", "average"])
def test_which_parameters_the_optimiser_moves(way):
    teacher = pyramid(1, 6)
    values = settings(teacher_modules=way)
    values["instance_relation"]["teacher_modules"] = way
    runner = Runner(values, STUDENT, teacher)
    sides = {path[1] for path, _ in nnx.to_flat_state(runner.params)}
    assert ("teacher" in sides) == (way == "trained")
    held = {path[1] for path, _ in nnx.to_flat_state(runner.rest)}
    assert ("teacher" in held) == (way != "shared")


def test_average_follows_the_student():
    values = settings(teacher_modules="average", momentum=0.75)
    relation = {"teacher_modules": "average", "momentum": 0.75, "similarity": "embedded"}
    values["instance_relation"] |= relation
    runner = Runner(values, STUDENT, pyramid(1, 6))
    moved = jax.tree.map(lambda x: x + 1, runner.params)
    for train in (True, False):
        given = STUDENT, pyramid(1, 6), targets()
        _, rest = runner.run(moved, runner.rest, *given, train=train)
        before, after = (dict(nnx.to_flat_state(state)) for state in (runner.rest, rest))
        for path in (
            ("pixel_relation", "teacher", 0, "mix"),
            ("instance_relation", "teacher", 0, "first", "kernel"),
        ):
            expected = before[path][...] + 0.25 * train
            np.testing.assert_allclose(after[path][...], expected, rtol=1e-6)


def test_shared_modules_want_equal_channels():
    with pytest.raises(UserError, match=r"P3 has 6 in the student and 10"):
        make(settings(teacher_modules="shared"), STUDENT, TEACHER)


def test_unknown_keys_and_choices_are_named():
    with pytest.raises(UserError, match=r"distill\.pixel_relation\.node:"):
        distill_config({"pixel_relation": {"node": 3}})
    with pytest.raises(UserError, match=r"distill\.pixle_relation"):
        distill_config({"pixle_relation": {}})
    with pytest.raises(UserError, match=r"'papre' is unknown"):
        distill_config({"instance_feature": {"form": "papre"}})
    with pytest.raises(UserError, match=r"instance_relation\.teacher_modules = 'pretrained'"):
        distill_config({"instance_relation": {"teacher_modules": "pretrained"}})


def test_a_weight_in_the_place_of_a_terms_settings_is_refused():
    config = DistillConfig()
    object.__setattr__(config, "pixel_relation", 3.0)  # past the types that the tests check
    with pytest.raises(UserError, match=r"pixel_relation = 3\.0: must be settings of PixelRel"):
        config.__post_init__()


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_boxes": 0},
        {"max_boxes": -1},  # would leave the last box of every image out
        {"region_size": 0},
        {"region_levels": 0},
        {"region_levels": -1},
        {"images_per_device": 0},
        {"cwd": {"weight": -1.0}},
        {"pixel_relation": {"weight": float("nan")}},
        {"pixel_relation": {"weight": True}},  # no 1
        {"pixel_relation": {"momentum": 1.5}},
        {"pixel_relation": {"weight": float("inf")}},
        {"pixel_relation": {"gram_guard": -1.0}},
        {"pixel_relation": {"teacher_scale": -1.0}},
        {"pixel_relation": {"student_scale": float("nan")}},
        {"fgd": {"momentum": -0.1}},
        {"fgd": {"momentum": True}},
        {"fgd": {"relation": -1.0}},  # would train away from the teacher
        {"fgd": {"attention": float("nan")}},
        {"fgd": {"temperature": float("inf")}},
        {"crosskd": {"box": float("nan")}},
        {"instance_relation": {"filter_rank": 0}},
        {"instance_relation": {"embedding": 0}},
        {"instance_relation": {"embedding": True}},
    ],
)
def test_a_number_that_cannot_be_is_refused_by_name(wrong):
    (name, value), *_ = wrong.items()
    if isinstance(value, dict):
        (key, value), *_ = value.items()
        name = f"{name}.{key}"
    told = rf"distill\.{re.escape(name)} (= {value!r}: |must be .*, not {value!r}$)"
    with pytest.raises(UserError, match=told):
        distill_config(wrong)


def test_a_batch_without_a_row_for_boxes_is_one_without_boxes(paper):
    none = targets((0, 0), padding=1)
    rowless = none._replace(boxes=none.boxes[:, :0], valid=none.valid[:, :0])
    assert paper.losses(STUDENT, TEACHER, rowless) == paper.losses(STUDENT, TEACHER, none)


def test_a_term_that_is_none_is_left_out():
    runner = Runner({**settings(), "pixel_relation": None}, STUDENT, TEACHER)
    assert set(runner.losses(STUDENT, TEACHER, targets())) == {
        "instance_relation",
        "instance_feature",
    }


def test_drawing_functions(paper):
    module = nnx.merge(paper.graph, paper.params, paper.rest, copy=True)
    x, phi = relation_features(module, TEACHER, "teacher", 1, targets())
    assert x.shape == phi.shape == TEACHER.maps[1].shape
    psi = relation_matrix(module, STUDENT, targets((3, 2)), "student", 0)
    np.testing.assert_allclose(psi.sum((1, 2)), [3, 2], rtol=1e-5)
    assert psi.shape == (2, 4, 4)


@pytest.mark.parametrize("form", FORMS)
def test_the_drawn_features_are_those_that_the_loss_compares(form):
    values = settings(form, teacher_scale=1.0, student_scale=1.0, compare="values")
    module = make({**values, "instance_relation": None, "instance_feature": None}, STUDENT, TEACHER)
    given = targets()
    output = call(module, STUDENT, TEACHER, given)  # sets the running statistics
    output = call(module, STUDENT, TEACHER, given, train=False)
    masks = module.masks(STUDENT.maps, given.sizes, given.image_valid, form)
    for level, (pair, mask) in enumerate(zip(module.pairs, masks, strict=True)):
        phi = relation_features(module, TEACHER, "teacher", level, given)[1]
        own = relation_features(module, STUDENT, "student", level, given)[1]
        off = phi - module.pixel_relation.adaptation[level](own)
        squares = np.where(mask[..., None], np.asarray(off) ** 2, 0).sum()
        expected = squares**0.5 if form == "official" else squares / (mask.sum() * off.shape[-1])
        found = output.diagnostics[f"pixel_relation/{pair.name}/loss"]
        np.testing.assert_allclose(found, expected, rtol=2e-7)  # measured: the same bits
