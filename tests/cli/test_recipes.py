"""Recipes by name, and printing their keys."""

from __future__ import annotations

import json
import math

import pytest

from drkd_jax import __main__ as command_line
from drkd_jax.errors import UserError
from drkd_jax.recipes import common
from drkd_jax.recipes.finding import find_recipe, load_recipe, recipe_folder, recipe_names
from drkd_jax.recipes.keys import list_keys


@pytest.mark.parametrize("form", ["", ":drkd:faster_rcnn"])
def test_a_name_a_file_and_a_copy_elsewhere_are_one_recipe(form, tmp_path, monkeypatch):
    copy = tmp_path / "mine.py"
    copy.write_text((recipe_folder() / "folder.py").read_text())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()  # a folder with a recipe's name, as created by `demo`
    wanted = load_recipe(f"folder{form}").to_dict()
    for other in (str(recipe_folder() / "folder.py"), "mine.py", str(copy)):
        assert load_recipe(other + form).to_dict() == wanted, other
    assert (wanted["distill"] is None) == (form == "")
    # Relative to another folder than the current one.
    monkeypatch.chdir("/")
    assert find_recipe(f"mine.py{form}", tmp_path)[0] == copy


def test_a_wheel_s_recipes_are_those_inside_the_package(tmp_path, monkeypatch):
    package = tmp_path / "drkd_jax"
    (package / "configs").mkdir(parents=True)
    (tmp_path / "configs").mkdir()  # another project's folder
    (tmp_path / "configs" / "theirs.py").write_text("")
    (package / "configs" / "ours.py").write_text("")
    monkeypatch.setattr("drkd_jax.__file__", str(package / "__init__.py"))
    assert recipe_names() == ["ours"]


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("foldr:drkd", "no recipe 'foldr'; there are demo, faster_rcnn_r50_fpn_2x_coco, "),
        ("", "no recipe ''; there are demo, "),
        ("none/folder.py:drkd", "the recipe of that name comes along: --config=folder:drkd"),
        ("none/mine.py", "recipe none/mine.py: no such file; there are demo, "),
        ("folder:pupil", "recipe folder:pupil: unknown form 'pupil'; there are teacher, student"),
        ("folder:drkd:yolo", "unknown detector 'yolo'; there are retinanet and faster_rcnn"),
        ("demo:pupil", "unknown form 'pupil'; there are teacher, student, drkd and tiny"),
        ("overfit:yolo", "unknown detector 'yolo'"),
    ],
)
def test_what_is_no_recipe_is_told_in_one_line(recipe, words, capsys):
    for arguments in (["recipes", recipe], ["benchmark", f"--config={recipe}"]):
        assert command_line.main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert words in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x x", "SyntaxError: invalid syntax (mine.py, line 1)"),
        ("import math\nmath.none\n", "line 2: AttributeError: module 'math' has no attribute"),
        ("def get_config(name=None):\n    return {}[name]\n", "line 2: KeyError: None"),
        ("def get_config(name=None):\n    return 3\n", "gives no ConfigDict, but int"),
        ("", "has no get_config(name=None)"),
    ],
)
def test_a_fault_of_a_recipe_s_file_is_named_with_its_line(text, words, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load_recipe(str(file))
    assert str(file) in str(caught.value)
    assert words in str(caught.value)


def test_the_names_are_printed(capsys):
    assert command_line.main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    assert all(len(line.split()) > 3 for line in lines)
    assert command_line.main(["recipes", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == recipe_names()


@pytest.mark.parametrize("recipe", ["folder:drkd:faster_rcnn", "retinanet_r50_fpn_2x_coco_drkd"])
def test_every_key_is_printed_with_its_value_and_its_words(recipe, capsys):
    config = load_recipe(recipe)
    keys = list_keys(config)
    rebuilt: dict = {}
    for key in keys:
        part = rebuilt
        *parents, last = key.name.split(".")
        for parent in parents:
            part = part.setdefault(parent, {})
        part[last] = key.value
        assert len(key.words) > 3, f"{key.name} has no comment or docstring"
    assert rebuilt == config.to_dict()

    assert command_line.main(["recipes", recipe]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(keys)
    assert any(line.startswith("data.flip = 0.5  # probability of a") for line in lines)
    assert command_line.main(["recipes", recipe, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told) == [key.name for key in keys]
    assert told["train.decay_at"]["value"] == list(config.train.decay_at)
    assert math.isclose(told["data.flip"]["value"], 0.5)


def test_keys_of_a_recipe_that_is_no_run_are_printed_still(tmp_path, capsys):
    text = (
        "from ml_collections import ConfigDict\ndef get_config(name=None):\n    return ConfigDict("
    )
    for inner in ("{'student': {'detector': 'yolo'}})", "{'lr': 0.1})", "{'teacher': 'x.pth'})"):
        (tmp_path / "mine.py").write_text(text + inner)
        assert command_line.main(["recipes", str(tmp_path / "mine.py")]) == 0
        assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_plain_run_has_words_for_its_empty_places():
    keys = {key.name: key for key in list_keys(common.base())}
    assert keys["teacher"].value is None
    assert all(key.words for key in keys.values())


def test_a_command_of_the_checkout_says_so_elsewhere(monkeypatch, capsys):
    monkeypatch.setattr(command_line, "find_spec", lambda name: None if name == "crosscheck" else 1)
    assert command_line.main(["crosscheck"]) == 2
    assert "runs in a checkout: python -m drkd_jax crosscheck" in capsys.readouterr().err
