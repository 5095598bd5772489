"""Which computations are in bfloat16, and which are not, from programs that are only traced."""

import jax
import jax.numpy as jnp
import pytest

from drkd_jax.data.pipeline import train_loader
from drkd_jax.step.train_step import loss_terms
from drkd_jax.training.setup import build_run
from tests.training import tiny

# These need all digits of float32: losses, softmax, norms, boxes, and all sums.
CAREFUL = (
    "exp",
    "log",
    "log1p",
    "logistic",
    "rsqrt",
    "sqrt",
    "reduce_sum",
    "cumsum",
    "div",
    "atan2",
)


@pytest.fixture(scope="module", params=["retinanet", "faster_rcnn"])
def programs(request):
    """A run in bfloat16 with all terms; its forward pass and its gradient as jaxprs."""
    config = tiny.config(request.param, distilled=True, precision="bfloat16")
    config["teacher"]["dtype"] = "bfloat16"
    run = build_run(config)
    loader = train_loader(run.train_source, run.pipeline)
    batch = next(loader)
    loader.close()

    def loss(params):
        state = run.state
        return loss_terms(
            run.recipe, params, state.model_state, run.teacher_arrays, batch, state.step
        )

    forward = jax.make_jaxpr(loss)(run.state.params)
    gradient = jax.eval_shape(jax.grad(loss, has_aux=True), run.state.params)
    stepped = jax.make_jaxpr(run.step)(run.state, run.teacher_arrays, batch).out_avals
    return run, list(equations(forward.jaxpr)), forward, gradient, stepped


def equations(jaxpr):
    """All operations of a program, including those of its inner programs."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                closed = getattr(inner, "jaxpr", inner)
                if hasattr(closed, "eqns"):
                    yield from equations(closed)


def dtypes(equation, which="invars"):
    return {str(v.aval.dtype) for v in getattr(equation, which) if hasattr(v.aval, "dtype")}


def test_every_convolution_takes_bfloat16(programs):
    _, found, *_ = programs
    convolutions = [e for e in found if e.primitive.name == "conv_general_dilated"]
    assert len(convolutions) > 35  # the backbones and pyramids of both sides, and a head
    for equation in convolutions:
        assert dtypes(equation) == {"bfloat16"}, equation


def test_losses_softmax_norms_and_sums_are_float32(programs):
    _, found, *_ = programs
    seen = set()
    for equation in found:
        if equation.primitive.name in CAREFUL:
            seen.add(equation.primitive.name)
            assert "bfloat16" not in dtypes(equation), equation
    assert {"exp", "rsqrt", "reduce_sum", "div"} <= seen


def test_gram_matrices_are_accumulated_in_float32(programs):
    _, found, *_ = programs
    products = [e for e in found if e.primitive.name == "dot_general"]
    wide = [e for e in products if dtypes(e, "outvars") == {"float32"}]
    from_narrow = [e for e in wide if "bfloat16" in dtypes(e)]
    assert wide
    for equation in products:
        # A product that stays in bfloat16 is from a layer, over channels only.
        if dtypes(equation, "outvars") == {"bfloat16"}:
            ((left, _), _) = equation.params["dimension_numbers"]
            assert len(left) == 1, equation
    print(f"{len(products)} products, {len(wide)} float32, {len(from_narrow)} of bfloat16 maps")


def test_master_weights_gradients_and_reported_values_are_float32(programs):
    run, _, forward, gradient, stepped = programs
    for tree in (run.state.params, run.state.opt_state, gradient[0], stepped):
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(tree)} - {"int32"} == {"float32"}
    assert {str(aval.dtype) for aval in forward.out_avals if aval.ndim == 0} <= {"float32"}
    teacher = jax.tree.leaves(run.teacher_arrays)
    assert {str(leaf.dtype) for leaf in teacher if leaf.ndim > 1} == {"bfloat16"}


def test_detections_are_float32(programs):
    run, *_ = programs
    batch = next(iter(train_loader(run.train_source, run.pipeline)))
    found = jax.eval_shape(
        run.predict, (run.state.params["student"], run.state.model_state["student"]), batch
    )
    assert found.boxes.dtype == found.scores.dtype == jnp.float32
