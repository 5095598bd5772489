from types import SimpleNamespace

from drkd_jax.cli import train as command
from drkd_jax.training import measure as module
from tests.training import tiny


def test_it_says_what_would_happen_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cost = module.Cost(
        trace_seconds=2.0,
        compile_seconds=5.0,
        step_seconds=30.0,
        step_range=(29.0, 31.0),
        images_per_second=4 / 30,
        flops=1.0,
        flops_written=1.0,
        memory={"arguments": 3 * 2**20, "temporary": 2**31},
        parts={},
        canvas=(64, 96),
        batch_size=4,
    )
    asked = []

    def measure(run, **how):
        asked.append((run.steps, how))
        return cost

    monkeypatch.setattr(module, "measure", measure)
    config = tiny.config(distilled=True)
    config["data"]["max_boxes"] = 1  # something to warn of
    lines: list[str] = []
    assert module.dry_run(config, lines.append) is cost
    assert asked == [(8, {"steps": 3, "parts": False})]
    text = "\n".join(lines)
    assert "random weights, as config.teacher.init asks for" in text
    assert (
        "a step     30.000 s (29.000 to 31.000) at 64x96, 0.1 images per second, after 7 s" in text
    )
    assert "memory     arguments 3 MiB, temporary 2,048 MiB" in text
    assert "the run    about 4 min for 8 steps" in text
    assert any(line.startswith("warning: ") for line in lines)
    assert not list(tmp_path.iterdir())


def test_of_several_processes_it_says_that_it_looks_at_this_one_alone(monkeypatch, capsys):
    config = SimpleNamespace(to_dict=dict)
    for name, value in (("_DRY_RUN", True), ("_DISTRIBUTED", True), ("_CONFIG", config)):
        monkeypatch.setattr(command, name, SimpleNamespace(value=value))
    monkeypatch.setattr(module, "dry_run", lambda config: print("a step     1 s"))
    command._train()
    words, step = capsys.readouterr().out.splitlines()
    assert words.startswith("processes  this one alone: a dry run meets no other")
    assert step == "a step     1 s"
