import pytest

from drkd_jax.errors import UserError
from drkd_jax.models.filling import as_tuples
from drkd_jax.step.settings import eval_settings, train_settings

GOOD = {"batch_size": 2, "learning_rate": 0.1, "steps": 5}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"momentun": 0.9}, "train.momentun: no such key"),
        ({"steps": 0}, "give one of the two"),
        ({"epochs": 3.0}, "give one of the two"),
        ({"batch_size": 0}, "train.batch_size = 0"),
        ({"learning_rate": 0.0}, "nothing would be learned"),
        ({"learning_rate": float("nan")}, "train.learning_rate must be a finite number"),
        ({"weight_decay_mask": "biases"}, "one of all, kernels"),
        ({"parallel": "threads"}, "train.parallel"),
        ({"precision": "float16"}, "train.precision"),
        ({"clip_norm": -1.0}, "train.clip_norm"),
        ({"log_every": 0}, "train.log_every"),
        ({"linear_rate_for": -16}, "train.linear_rate_for"),
        ({"momentum": 1.0}, "train.momentum"),
        ({"warmup_factor": -0.1}, "train.warmup_factor"),
        ({"decay_factor": -0.1}, "train.decay_factor"),
        ({"clip_norm": float("nan")}, "train.clip_norm"),
        ({"decay_at": (0.5, -2.0)}, "train.decay_at"),
    ],
)
def test_a_wrong_value_is_refused_by_name(change, words):
    with pytest.raises(UserError, match=words):
        train_settings({**GOOD, **change})


def test_a_missing_key_is_named():
    with pytest.raises(UserError, match=r"config\.train\.learning_rate is missing"):
        train_settings({"batch_size": 2, "steps": 3})


def test_json_lists_become_tuples():
    assert train_settings({**GOOD, "decay_at": [0.5, 0.8]}).decay_at == (0.5, 0.8)
    assert as_tuples({"a": [[1, 2], {"b": [3]}]}) == {"a": ((1, 2), {"b": (3,)})}


def test_the_rate_follows_the_batch_only_where_it_is_asked_to():
    settings = {**GOOD, "batch_size": 64, "learning_rate": 0.02}
    assert train_settings(settings).rate == 0.02
    assert train_settings({**settings, "linear_rate_for": 16}).rate == 0.08


def test_evaluation_settings():
    assert eval_settings({"batch_size": 3}).max_images == 0
    with pytest.raises(UserError, match=r"eval\.batch_size"):
        eval_settings({"batch_size": 0})
    with pytest.raises(UserError, match=r"eval\.evaluator = 'mine': one of faster, pycocotools"):
        eval_settings({"evaluator": "mine"})
