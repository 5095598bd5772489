"""Bad arguments: one clear line, exit code 2."""

import pytest

from drkd_jax import __main__ as command_line
from tests.training.tiny import python


def run(*arguments):
    process = python("train.py", *arguments)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


RECIPE = "--config=tests/training/recipe.py"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--config is missing"),
        ([RECIPE], "--workdir is missing"),
        (["--config=configs/none.py", "--workdir={}"], "configs/none.py"),
        ([RECIPE, "--workdir={}", "--config.train.momentun=1"], "momentun"),
        ([RECIPE, "--workdir={}", "--config.train.steps=many"], "many"),
        ([RECIPE, "--workdir={}", "--steps=3"], "Unknown command line flag 'steps'"),
        ([RECIPE, "--workdir={}", "more"], "what is more?"),
        ([RECIPE, "--workdir={}", "--config.data.train=folder:x"], "unknown data source"),
        ([RECIPE, "--workdir={}", "--process-id=1"], "--process-id belongs to --distributed"),
        ([RECIPE, "--workdir={}", "--coordinator=a:1"], "--coordinator belongs to --distributed"),
        ([RECIPE, "--workdir={}", "--distributed"], "the processes of this run do not find each"),
        ([RECIPE, "--workdir={}", "--distributed", "--num-processes=2"], "give all three"),
        ([RECIPE, "--workdir={}", "--distributed", "--process-id=one"], "--process-id=one"),
        ([RECIPE, "--workdir={}", "--profile=9:3"], "--profile=9:3: a number of steps, or"),
    ],
)
def test_train_refuses_with_one_line_and_exit_code_2(arguments, words, tmp_path):
    folder = tmp_path / "run"
    code, out, err = run(*(argument.format(folder) for argument in arguments))
    assert code == 2, err
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--config is missing; see drkd train --help"),
        (["--config=foldr", "--workdir={}"], "no recipe 'foldr'; there are demo, "),
        (["--config", "folder:tiny", "--workdir={}", "--config.train.momentun=1"], "momentun"),
        (["--config=folder:tiny", "--workdir={}", "more"], "what is more?"),
    ],
)
def test_train_as_a_command_refuses_the_same_way(arguments, words, tmp_path):
    folder = tmp_path / "run"
    words_given = (argument.format(folder) for argument in arguments)
    process = python("-m", "drkd_jax", "train", *words_given)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert not folder.exists()


def test_train_tells_its_flags():
    code, out, _ = run("--help")
    assert code == 1  # absl's own code for --help
    assert "--workdir" in out
    assert "--config" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluete"], "no command 'evaluete'; there are evaluate, predict"),
        (["evaluate"], "one of the arguments --workdir --weights is required"),
        (["evaluate", "--weights=x"], "--weights needs --data"),
        (["evaluate", "--weights=x", "--data=shapes:2"], "x: cannot be read"),
        (["evaluate", "--workdir=nowhere"], "nowhere: no such folder"),
        (["evaluate", "--workdir=x", "--which=worst"], "invalid choice: 'worst'"),
        (["evaluate", "--workdir=x", "--evaluator=mine"], "invalid choice: 'mine'"),
        (["evaluate", "--workdir=x", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["predict", "--workdir=x", "--out=y"], "required: IMAGE"),
        (["prepare", "tfds:voc", "--images=a", "--instances=b", "--split=c"], "only tfds:coco"),
    ],
)
def test_a_command_refuses_with_one_line_and_exit_code_2(arguments, words, capsys):
    assert command_line.main(arguments) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert printed.out == ""


def test_the_commands_are_listed(capsys):
    assert command_line.main(["--help"]) == 0
    assert command_line.main([]) == 2
    printed = capsys.readouterr().out
    for name in command_line.commands():
        assert printed.count(f"  {name} ") == 2
    assert {"evaluate", "predict", "prepare"} <= command_line.commands().keys()
