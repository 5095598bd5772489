"""Files from the hub: from its client's cache, and from a local stand-in server."""

import hashlib
import json
import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save, save_file

from drkd_jax.errors import UserError
from drkd_jax.training.starting import build_student, check_files
from drkd_jax.training.teacher import load_teacher
from drkd_jax.weights.fetch import by_name
from drkd_jax.weights.fetch.by_name import HubName, choose_file, local_file, parse_hub_name
from drkd_jax.weights.opening import load
from tests.weights.fetch.server import serving
from tests.weights.small import foreign

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RESNET = "hf:timm/resnet18.a1_in1k"
STUDENT = {
    "detector": "retinanet",
    "backbone": {"depth": 18, "width": 8, "norm": "frozen_bn"},
    "channels": 16,
    "head_convs": 2,
}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("hf:a/b", ("a/b", None, None)),
        ("hf:a/b.c-d_1:x.pth", ("a/b.c-d_1", None, "x.pth")),
        ("hf:a/b@v1.0", ("a/b", "v1.0", None)),
        ("hf:a/b@refs/pr/1:sub/x.pth", ("a/b", "refs/pr/1", "sub/x.pth")),
    ],
)
def test_a_name_is_taken_apart(name, wanted):
    assert parse_hub_name(name) == HubName(*wanted)


@pytest.mark.parametrize(
    "name",
    [
        "hf:a/b:../../../x.pth",
        "hf:a/b:/etc/x.pth",
        "hf:a/b@../v:x.pth",
        "hf:../b:x.pth",
        "hf:a/b:.",
    ],
)
def test_a_name_that_leads_out_of_the_cache_is_refused(name):
    with pytest.raises(UserError, match=r"'\.', '\.\.' or an empty part in it"):
        local_file(name)


@pytest.mark.parametrize("name", ["hf:", "hf:a", "hf:a/b/c", "hf:a/b@", "hf:a/b:", "hf:a/b@v@w"])
def test_another_form_is_refused(name):
    with pytest.raises(UserError, match="is not of the form hf:OWNER/REPO"):
        parse_hub_name(name)


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        (["README.md", "pytorch_model.bin", "model.safetensors", "b.safetensors"], "model.saf"),
        (["sub/only.safetensors", "pytorch_model.bin", "x.pth"], "sub/only.safetensors"),
        (["x.pth", "pytorch_model.bin", "optimizer.pt"], "pytorch_model.bin"),
        (["config.json", "x.pth"], "x.pth"),
        (["b.pth", "a.pth"], r"2 files of weights; say which, as hf:o/r:a\.pth \(a\.pth, b\.pth\)"),
        (["b.safetensors", "a.safetensors", "pytorch_model.bin"], "3 files of weights"),
        (["config.json"], "no file of weights"),
    ],
)
def test_the_one_file_is_chosen_or_all_are_listed(files, wanted):
    if "file" in wanted:
        with pytest.raises(UserError, match=wanted):
            choose_file(files, "hf:o/r")
    else:
        assert choose_file(files, "hf:o/r").startswith(wanted)


def timm_file():
    """A ResNet in timm's format: torchvision's keys, counters, a classifier, its metadata."""
    _, theirs = foreign("torchvision backbone")
    arrays = dict(theirs)
    for key in theirs:
        if key.endswith("running_var"):
            arrays[key.replace("running_var", "num_batches_tracked")] = np.array(7, np.int64)
    arrays |= {"fc.weight": np.zeros((10, 64), np.float32), "fc.bias": np.zeros(10, np.float32)}
    return save(arrays, {"format": "pt"})


class Evil:
    def __reduce__(self):
        return (print, ("this ran",))


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """Files by repository and name."""
    detector = tmp_path_factory.mktemp("detector") / "model.safetensors"
    save_file(foreign("mmdet retinanet")[1], detector)
    return {
        "timm/resnet18.a1_in1k": {
            "model.safetensors": timm_file(),
            "pytorch_model.bin": b"not looked at",
            "config.json": json.dumps({"architecture": "resnet18"}).encode(),
        },
        "me/detector": {"retinanet.safetensors": detector.read_bytes()},
        "me/evil": {"pytorch_model.bin": pickle.dumps({"x": Evil()})},
        "me/two": {"a.pth": b"a", "b.pth": b"b"},
    }


@pytest.fixture
def client(monkeypatch, tmp_path):
    """The hub's client, with an empty cache."""
    pytest.importorskip("huggingface_hub", reason="pip install 'drkd-jax[hub]'")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("no_proxy", "*")
    return constants


@pytest.fixture
def cached(client, contents, monkeypatch, tmp_path):
    """The client offline, with a cache in its own layout."""
    monkeypatch.setattr(client, "HF_HUB_OFFLINE", True)
    for repo, files in contents.items():
        folder = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(COMMIT)
        (folder / "blobs").mkdir()
        snapshot = folder / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        for name, content in files.items():
            blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
            blob.write_bytes(content)
            (snapshot / name).symlink_to(blob)


def config(init, teacher=None):
    student = {**STUDENT, "init": init}
    return {"seed": 0, "student": student, "teacher": teacher and {"checkpoint": teacher}}


def test_timm_s_resnet_from_the_cache_fills_a_backbone(cached):
    wanted, _ = foreign("torchvision backbone")
    weights = load(RESNET)
    assert set(weights.arrays) == set(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(weights.arrays[name], array)
    assert weights.about.source["name"] == RESNET
    check_files(config(RESNET))
    student, origin = build_student(config(RESNET), 3, jnp.float32)
    assert origin.startswith(f"{RESNET} (")
    assert COMMIT in origin
    assert "2 of the ImageNet classifier skipped" in origin
    found = student.backbone.stem.conv.kernel[...]
    np.testing.assert_array_equal(found, wanted["backbone.stem.conv.kernel"])


def test_a_teacher_from_the_cache(cached):
    name = f"hf:me/detector@{COMMIT}"
    check_files(config("", name))
    teacher = load_teacher({"checkpoint": name}, 3, 0)
    assert teacher.origin.startswith(f"{name} (")
    assert "its heads are left out" in teacher.origin


def test_a_file_that_would_run_code_is_refused_from_the_hub_too(cached, capsys):
    with pytest.raises(UserError, match=r"pytorch_model\.bin: .*builtins\.print"):
        load("hf:me/evil")
    assert "this ran" not in capsys.readouterr().out


def test_what_is_not_in_the_cache_is_said_offline(cached):
    for name in ("hf:me/none", "hf:me/none:x.pth", "hf:me/detector@v2", "hf:me/detector:x.pth"):
        with pytest.raises(UserError, match=rf"^{name}: was not fetched .*HF_HUB_OFFLINE is set"):
            local_file(name)
    with pytest.raises(UserError, match=r"^config\.teacher\.checkpoint = hf:me/none: was not fet"):
        check_files(config(RESNET, "hf:me/none"))
    with pytest.raises(UserError, match=r"say which, as hf:me/two:a\.pth \(a\.pth, b\.pth\)"):
        local_file("hf:me/two")


def test_blurred_resnets_are_refused(client):
    for name in ("hf:timm/resnetblur50.bt_in1k", "hf:timm/resnetaa50.a1h_in1k:model.safetensors"):
        with pytest.raises(UserError, match="a ResNet with blurred strides"):
            local_file(name)


def test_without_the_client_its_extra_is_named(monkeypatch):
    monkeypatch.setattr(by_name, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^hf:a/b: needs huggingface_hub: pip install 'drkd-jax\["):
        local_file("hf:a/b")


@pytest.fixture
def online(client, contents, monkeypatch):
    """A server that answers like the hub, and records the requests."""
    with serving() as files:
        for repo, own in contents.items():
            siblings = [{"rfilename": name} for name in own]
            about = {"id": repo, "sha": COMMIT, "siblings": siblings}
            files.content[f"/api/models/{repo}"] = json.dumps(about).encode()
            for name, content in own.items():
                path = f"/{repo}/resolve/main/{name}"
                files.content[path] = content
                etag = hashlib.sha256(content).hexdigest()
                files.headers[path] = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
        monkeypatch.setattr(client, "ENDPOINT", files.url)
        monkeypatch.setattr(client, "HF_HUB_OFFLINE", False)
        template = files.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(client, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield files


def test_a_file_is_fetched_from_the_hub_and_then_used_without_it(online, client, monkeypatch):
    path = local_file("hf:me/detector")
    assert path.name == "retinanet.safetensors"
    assert COMMIT in str(path)
    monkeypatch.setattr(client, "HF_HUB_OFFLINE", True)
    asked = len(online.asked)
    assert local_file("hf:me/detector") == path
    assert len(online.asked) == asked
    assert load("hf:me/detector").about.part == "detector"


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("RepoNotFound", 401, "there is no repository me/detector on the hub; or it is private"),
        ("GatedRepo", 403, "its owner must grant access: ask on https://huggingface.co/"),
        ("RevisionNotFound", 404, "the repository has no revision v2"),
        ("EntryNotFound", 404, r"the repository has no file x\.pth"),
        ("", 418, r"was not fetched .* the hub cannot be asked \(.*418"),
    ],
)
def test_what_the_hub_refuses_is_said(online, code, status, words):
    path = "/me/detector/resolve/v2/x.pth"
    online.status[path], online.headers[path] = status, {"X-Error-Code": code}
    with pytest.raises(UserError, match=words) as failure:
        local_file("hf:me/detector@v2:x.pth")
    assert "\n" not in str(failure.value)
