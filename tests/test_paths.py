"""`~` in all paths that a user types."""

import pytest

from configs import folder
from drkd_jax.data.sources import open_source
from drkd_jax.errors import UserError
from drkd_jax.paths import expand_arguments, expand_config, expand_home


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("~", "{}"),
        ("~/runs/a b", "{}/runs/a b"),
        ("runs/~/x", "runs/~/x"),
        ("a~", "a~"),
        ("~nobody-of-that-name/x", "~nobody-of-that-name/x"),
        ("coco:~/images:~/train.json", "coco:{}/images:{}/train.json"),
        ("coco:images:~/train.json", "coco:images:{}/train.json"),
        ("coco:a~/b~c:d.json", "coco:a~/b~c:d.json"),
        ("coco:~/a:~/b.json + coco:~/c:~/d.json", "coco:{}/a:{}/b.json + coco:{}/c:{}/d.json"),
        ("tfds:coco/2017:train@~/tfds", "tfds:coco/2017:train@{}/tfds"),
        ("shapes:4", "shapes:4"),
        ("", ""),
    ],
)
def test_the_home_folder(text, wanted, home):
    assert expand_home(text) == wanted.format(*[home] * wanted.count("{}"))


def test_arguments_of_a_command_line(home):
    given = ["--workdir=~/x", "--config.data.val=coco:~/i:~/v.json", "--out", "~/o", "~/a=b.jpg"]
    given += ["--score=0.3", "-h", "--set", "a.b=~"]
    wanted = [f"--workdir={home}/x", f"--config.data.val=coco:{home}/i:{home}/v.json", "--out"]
    wanted += [f"{home}/o", f"{home}/a=b.jpg", "--score=0.3", "-h", "--set", "a.b=~"]
    assert expand_arguments(given) == wanted


def test_every_path_of_a_config(home):
    config = folder.get_config("drkd").to_dict()
    config["data"] |= {"train": "coco:~/i:~/t.json", "val": "tfds:coco/2017:validation@~/t"}
    config["student"]["init"], config["teacher"]["checkpoint"] = "~/s.pth", "~/teacher"
    expanded = expand_config(config)
    assert expanded["data"]["train"] == f"coco:{home}/i:{home}/t.json"
    assert expanded["data"]["val"] == f"tfds:coco/2017:validation@{home}/t"
    assert expanded["student"]["init"] == f"{home}/s.pth"
    assert expanded["teacher"]["checkpoint"] == f"{home}/teacher"
    assert config["student"]["init"] == "~/s.pth"
    assert "~" not in str(expanded)


def test_a_config_without_a_teacher():
    config = folder.get_config("student").to_dict()
    assert expand_config(config) == config


def test_a_source_opens_in_the_home_folder(home):
    with pytest.raises(UserError, match=f"{home}/images does not exist"):
        open_source("coco:~/images:~/train.json")
