"""Bad arguments: one clear line, exit code 2."""

import json

import pytest

from drkd_jax import __main__ as command_line
from tests.training.tiny import python


def run(*arguments):
    process = python("train.py", *arguments)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


RECIPE = "--config=tests/training/recipe.py"


REFUSED = [
    ([], "--config is missing"),
    ([RECIPE], "--workdir is missing"),
    (["--config=configs/none.py", "--workdir={}"], "configs/none.py"),
    ([RECIPE, "--workdir={}", "--config.train.momentun=1"], "momentun"),
    (
        [RECIPE, "--workdir={}", "--config.train.learning_rat=1"],
        'no key \'learning_rat\' (Did you mean "learning_rate" instead of "learning_rat"?); given',
    ),
    (
        ["--config=folder:student", "--workdir={}", "--config.teacher.checkpoint=x"],
        "--config.teacher.checkpoint: config.teacher is empty in this recipe",
    ),
    (
        [RECIPE, "--config=folder:drkd", "--workdir={}", "--config.train.steps=3"],
        f"error: give one --config, not several: {RECIPE}, --config=folder:drkd",
    ),
    (
        [RECIPE, "--config", "folder:drkd", "--workdir={}"],
        f"error: give one --config, not several: {RECIPE}, --config folder:drkd",
    ),
    (["--workdir={}", "--config.data.train=coco:a:b"], "--config is missing; given: --config."),
    (
        [RECIPE, "--workdir={}", "--config.train.steps=1e3"],
        "--config.train.steps=1e3: must be a whole number in digits alone",
    ),
    (
        [RECIPE, "--workdir={}", "--config.train.learning_rate=fast"],
        "--config.train.learning_rate=fast: must be a number",
    ),
    (
        ["--config=folder:drkd", "--workdir={}", "--config.teacher.evaluate=yes"],
        "--config.teacher.evaluate=yes: must be True or False",
    ),
    (
        ["--config=folder:drkd", "--workdir={}", "--config.teacher=W"],
        "--config.teacher=W: a part with keys of its own; set one of them",
    ),
    ([RECIPE, "--workdir={}", "--config.data.val="], "config.data.val is empty: name a set"),
    ([RECIPE, "--workdir={}", "--steps=3"], "Unknown command line flag 'steps'"),
    ([RECIPE, "--workdir={}", "more"], "unknown: more; every argument is"),
    ([RECIPE, "--workdir={}", "--config.data.train=folder:x"], "unknown data source"),
    ([RECIPE, "--workdir={}", "--config.data.canvases=96"], "canvases = (96,): expected (height,"),
    ([RECIPE, "--workdir={}", "--config.data.canvases=((96,),)"], "expected (height, width) pairs"),
    (
        ["--config=folder:student", "--workdir={}", "--config.data.scale_jitter=(1,'a')"],
        "scale_jitter = (1, 'a'): two factors above 0",
    ),
    (
        [RECIPE, "--workdir={}", "--config.train.decay_at=('a',)"],
        "config.train.decay_at must be float, not 'a'",
    ),
    (
        ["--config=demo:tiny", "--workdir={}", "--config.distill.pixel_relation.nodes=('a',)"],
        "distill.pixel_relation.nodes needs at least one number",
    ),
    ([RECIPE, "--workdir={}", "--process-id=1"], "--process-id belongs to --distributed"),
    ([RECIPE, "--workdir={}", "--coordinator=a:1"], "--coordinator belongs to --distributed"),
    ([RECIPE, "--workdir={}", "--distributed"], "the processes of this run do not find each"),
    ([RECIPE, "--workdir={}", "--distributed", "--num-processes=2"], "give all three"),
    ([RECIPE, "--workdir={}", "--distributed", "--process-id=one"], "--process-id=one"),
    ([RECIPE, "--workdir={}", "--profile=9:3"], "--profile=9:3: a number of steps, or"),
]

# Each in its own process, forked after the common imports.
IN_TURN = """
import gc, json, os, runpy, sys
from pathlib import Path

import drkd_jax.training.loop
import tests.training.recipe

gc.freeze()
folder, codes = Path(sys.argv[1]), []
for number, arguments in enumerate(json.loads(sys.argv[2])):
    if not (child := os.fork()):
        break
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
else:
    (folder / "codes").write_text(json.dumps(codes))
    raise SystemExit
for descriptor, name in ((1, "out"), (2, "err")):
    os.dup2(os.open(folder / f"{number}.{name}", os.O_WRONLY | os.O_CREAT), descriptor)
sys.argv = ["train.py", *arguments]
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    """(exit code, output, errors, work folder) of each of `REFUSED`."""
    folder = tmp_path_factory.mktemp("refused")
    places = [folder / f"run{number}" for number in range(len(REFUSED))]
    asked = [
        [argument.format(place) for argument in arguments]
        for (arguments, _), place in zip(REFUSED, places, strict=True)
    ]
    process = python("-c", IN_TURN, str(folder), json.dumps(asked))
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    return [
        (code, *((folder / f"{number}.{name}").read_text() for name in ("out", "err")), place)
        for number, (code, place) in enumerate(
            zip(json.loads((folder / "codes").read_text()), places, strict=True)
        )
    ]


def check_refusal(code, out, err, words):
    assert code == 2, err
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert words in line


@pytest.mark.parametrize("number", range(len(REFUSED)), ids=[words for _, words in REFUSED])
def test_train_refuses_with_one_line_and_exit_code_2(refused, number):
    *found, folder = refused[number]
    check_refusal(*found, REFUSED[number][1])
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--config is missing; see drkd train --help"),
        (["--config=foldr", "--workdir={}"], "no recipe 'foldr'; there are demo, "),
        (["--config", "folder:tiny", "--workdir={}", "--config.train.momentun=1"], "momentun"),
        (["--config=folder:tiny", "--workdir={}", "more"], "unknown: more; every argument is"),
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


def test_so_does_a_process_from_its_start_on(tmp_path):
    check_refusal(
        *run(RECIPE, f"--workdir={tmp_path / 'run'}", "more"), "unknown: more; every argument is"
    )
    assert not (tmp_path / "run").exists()


def test_train_tells_its_flags():
    code, out, _ = run("--help")
    assert code == 1  # absl's own code for --help
    assert "--workdir" in out
    assert "--config" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluete"], "no command 'evaluete'; there are train, recipes, evaluate, predict"),
        (["evaluate"], "one of the arguments --workdir --weights is required"),
        (["evaluate", "--weights=x"], "--weights needs --data"),
        (["evaluate", "--workdir=train.py"], "--workdir=train.py is a file, which needs --data"),
        (["prepare", "--check", "coco:nowhere:x.json"], "image folder nowhere does not exist"),
        (["evaluate", "--weights=x", "--data=shapes:2"], "x: cannot be read"),
        (["evaluate", "--workdir=nowhere"], "nowhere: no such folder"),
        (["evaluate", "--workdir=x", "--which=worst"], "invalid choice: 'worst'"),
        (["evaluate", "--workdir=x", "--evaluator=mine"], "invalid choice: 'mine'"),
        (["evaluate", "--weights=x", "--size=800"], "'800' is not two whole numbers, as 800x1333"),
        (
            ["evaluate", "--workdir=x", "--batch-size=few"],
            "--batch-size: 'few' is not a whole number",
        ),
        (["export", "--workdir=x", "--to=stablehlo", "--canvas=96", "y"], "--canvas: '96' is not"),
        (["evaluate", "--workdir=x", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["predict", "--workdir=x", "--out=y"], "required: IMAGE"),
        (["prepare", "tfds:voc", "--images=a", "--instances=b", "--split=c"], "only tfds:coco"),
        (["prepare", "tfds:coco/2017", "--out=a"], "--out goes with --check"),
        (["prepare", "shapes:2", "--check", "--split=c"], "--split does not go with --check"),
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
