"""Weights given by name: an address, a file of Hugging Face's hub, or a published model.

| name | what it is |
|---|---|
| `https://HOST/FILE.pth#sha256=HEX` | an address with its file's checksum (`download.py`) |
| `hf:OWNER/REPO[@REVISION][:FILE]` | a file of Hugging Face's hub, fetched by its own client |
| `torchvision:resnet50`, `mmdet:...` | a short name of an address |

Names are recorded as they were given; only when a file is opened does its name become a path, in a
cache if the file was fetched before.

The hub's client is the extra `hub`. It stores, resumes and locks files in its own cache
(`HF_HOME`), and its switches apply: `HF_HUB_OFFLINE=1` uses no network, `HF_TOKEN` gives access to
gated and private repositories.

Sources of the short names: pytorch/vision, torchvision/models/resnet.py and
detection/{faster_rcnn,retinanet}.py; open-mmlab/mmdetection,
configs/{retinanet,faster_rcnn}/README.md and configs/dcn/metafile.yml.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from drkd_jax.errors import UserError, one_line
from drkd_jax.weights.fetch.download import fetch_address
from drkd_jax.words import listed

_HUB = "hf:"
_ADDRESSES = ("https://", "http://")
_FORM = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([^:@\s]+))?(?::([^\s]+))?")
_TIMEOUT = 10.0  # seconds
_KINDS = (".safetensors", ".pth", ".pt", ".pkl", ".bin")
# These have the keys and shapes of a plain ResNet, but blurred strides that no file shows.
_BLURRED = re.compile(r"resnet(blur|aa)\d")
_PREFIXES = ("torchvision:", "mmdet:")

# In both libraries a file's name contains the first eight hex digits of its SHA-256.
_TORCHVISION = "https://download.pytorch.org/models"
_MMDET = "https://download.openmmlab.com/mmdetection/v2.0"

_OF_TORCHVISION = {
    "resnet18": "resnet18-f37072fd",
    "resnet34": "resnet34-b627a593",
    "resnet50": "resnet50-0676ba61",
    "resnet101": "resnet101-63fe2227",
    "resnet152": "resnet152-394f9c45",
    "resnext50_32x4d": "resnext50_32x4d-7cdf4587",
    "resnext101_32x8d": "resnext101_32x8d-8ba56ff5",
    "fasterrcnn_resnet50_fpn": "fasterrcnn_resnet50_fpn_coco-258fb6c6",
    "fasterrcnn_resnet50_fpn_v2": "fasterrcnn_resnet50_fpn_v2_coco-dd69338a",
    "maskrcnn_resnet50_fpn_v2": "maskrcnn_resnet50_fpn_v2_coco-73cbd019",
    "retinanet_resnet50_fpn": "retinanet_resnet50_fpn_coco-eeacb38b",
    "retinanet_resnet50_fpn_v2": "retinanet_resnet50_fpn_v2_coco-5905b1c5",
}
# Name: its folder, and the rest of the file's name.
_OF_MMDET = {
    "retinanet_r50_fpn_2x_coco": ("retinanet", "_20200131-fdb43119"),
    "retinanet_r101_fpn_2x_coco": ("retinanet", "_20200131-5560aee8"),
    "retinanet_x101_64x4d_fpn_1x_coco": ("retinanet", "_20200130-366f5af1"),
    "retinanet_x101_64x4d_fpn_2x_coco": ("retinanet", "_20200131-bca068ab"),
    "faster_rcnn_r50_fpn_2x_coco": ("faster_rcnn", "_bbox_mAP-0.384_20200504_210434-a5d8aa15"),
    "faster_rcnn_r101_fpn_2x_coco": ("faster_rcnn", "_bbox_mAP-0.398_20200504_210455-1d2dac9c"),
    "faster_rcnn_x101_64x4d_fpn_1x_coco": ("faster_rcnn", "_20200204-833ee192"),
    "faster_rcnn_x101_64x4d_fpn_2x_coco": ("faster_rcnn", "_20200512_161033-5961fa95"),
    "cascade_mask_rcnn_x101_32x4d_fpn_dconv_c3-c5_1x_coco": ("dcn", "-e75f90c8"),
}

_FILES = {
    f"torchvision:{name}": f"{_TORCHVISION}/{end}.pth" for name, end in _OF_TORCHVISION.items()
}
_FILES |= {
    f"mmdet:{name}": f"{_MMDET}/{folder}/{name}/{name}{end}.pth"
    for name, (folder, end) in _OF_MMDET.items()
}
# "torchvision:resnet50" etc.: the address with the start of its checksum.
PUBLISHED = MappingProxyType({name: f"{url}#sha256={url[-12:-4]}" for name, url in _FILES.items()})


class HubName(NamedTuple):
    """A name of the form `hf:OWNER/REPO[@REVISION][:FILE]`."""

    repo: str
    revision: str | None  # a branch, a tag or a commit; None: the main branch
    file: str | None


def is_name(text: str) -> bool:
    """Whether a text names weights by one of the forms above; anything else is a path."""
    return text.startswith((_HUB, *_ADDRESSES, *_PREFIXES))


def local_file(place: str | Path) -> Path:
    """The local file for a name, fetched if necessary; a path is returned unchanged.

    Args:
        place: a name, or a path.

    Raises:
        UserError: a name of no known form, or a file that cannot be fetched or whose checksum is
            wrong.
    """
    text = str(place)
    if not is_name(text):
        return Path(place)
    if text.startswith(_HUB):
        return fetch_from_hub(text)
    if text.startswith(_ADDRESSES):
        return fetch_address(text)
    if text not in PUBLISHED:
        near = get_close_matches(text, PUBLISHED, 3, 0.0)
        raise UserError(
            f"{text}: no published file of that name is known (near: {', '.join(near)}; all are in "
            "docs/weights.md); give its address as https://HOST/FILE#sha256=HEX"
        )
    return fetch_address(PUBLISHED[text])


def short_name(file_name: str) -> str:
    """The short name of a published file, or "".

    Args:
        file_name: the published file's name, such as "resnet50-0676ba61.pth".
    """
    wanted = f"/{file_name}"
    return next((name for name, url in _FILES.items() if url.endswith(wanted)), "")


def parse_hub_name(name: str) -> HubName:
    """Parses a name of the hub.

    Raises:
        UserError: it does not have the form.
    """
    found = _FORM.fullmatch(name)
    if not found:
        raise UserError(f"{name}: is not of the form hf:OWNER/REPO, hf:OWNER/REPO@REVISION:FILE")
    parts = "/".join(filter(None, found.groups())).split("/")
    if {"", ".", ".."} & set(parts):  # would lead out of the client's cache
        raise UserError(f"{name}: '.', '..' or an empty part in it; write the path as it is there")
    return HubName(*found.groups())


def fetch_from_hub(name: str) -> Path:
    """The file for a name, in the hub client's cache; fetched if it is not there.

    Without a FILE, `choose_file` selects one.

    Raises:
        UserError: the client is not installed, the hub cannot be reached and the file is not
            cached, there is no such repository, revision or file, or access is restricted.
    """
    if find_spec("huggingface_hub") is None:
        raise UserError(
            f"{name}: needs huggingface_hub: pip install 'drkd-jax[hub]' (or pip install '.[hub]' "
            "in a checkout)"
        )
    from huggingface_hub import errors, hf_hub_download, utils

    if not os.environ.get("HF_HUB_VERBOSITY"):  # errors are reported here, in one line
        utils.logging.set_verbosity_error()
    wanted = parse_hub_name(name)
    if _BLURRED.search(wanted.repo):
        raise UserError(
            f"{name}: a ResNet with blurred strides: it has a plain ResNet's keys and computes "
            "another way, so its weights would be taken for what they are not"
        )
    page = f"https://huggingface.co/{wanted.repo}"
    try:
        file = wanted.file or choose_file(_files(wanted), name)
        return Path(hf_hub_download(wanted.repo, file, revision=wanted.revision))
    except UserError:
        raise
    except errors.GatedRepoError as error:
        raise UserError(
            f"{name}: its owner must grant access: ask on {page}, then log in (hf auth "
            "login, or HF_TOKEN)"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{name}: there is no repository {wanted.repo} on the hub; or it is private, and hf "
            "auth login (or HF_TOKEN) opens it"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{name}: the repository has no revision {wanted.revision}") from error
    except errors.LocalEntryNotFoundError as error:
        offline = isinstance(error.__cause__, errors.OfflineModeIsEnabled)
        cause = one_line(error.__cause__)[:200] if error.__cause__ else "no network"
        why = "HF_HUB_OFFLINE is set" if offline else cause
        raise UserError(
            f"{name}: was not fetched to this machine before, and the hub cannot be asked ({why}); "
            "fetch it where there is a network, or give a path"
        ) from error
    except errors.EntryNotFoundError as error:
        raise UserError(f"{name}: the repository has no file {wanted.file}; see {page}") from error
    except Exception as error:  # the client's HTTP library, and its errors, depend on the version
        raise UserError(
            f"{name}: cannot be fetched from the hub ({one_line(error)[:200]})"
        ) from error


def choose_file(files: Sequence[str], name: str) -> str:
    """The one file of weights among a repository's files.

    `model.safetensors` comes before any other safetensors file, those before
    `pytorch_model.bin`, and that before other files of torch.

    Args:
        files: their paths in the repository.
        name: for messages.

    Raises:
        UserError: there is none, or none comes before the others; all are listed.
    """
    weights = sorted(file for file in files if file.endswith(_KINDS))
    safe = [file for file in weights if file.endswith(".safetensors")]
    for first, others in (("model.safetensors", safe), ("pytorch_model.bin", weights)):
        if first in others:
            return first
        if len(others) == 1:
            return others[0]
        if others:
            break
    if weights:
        raise UserError(
            f"{name}: the repository holds {len(weights)} files of weights; say which, as "
            f"{name}:{weights[0]} ({listed(weights, 12)})"
        )
    raise UserError(f"{name}: the repository holds no file of weights ({', '.join(_KINDS)})")


def _files(wanted: HubName) -> list[str]:
    """The files of a repository: the hub's list, or offline those fetched before."""
    from huggingface_hub import HfApi, errors, snapshot_download

    try:
        # One request; `list_repo_files` would retry for half a minute without a network.
        found = HfApi().model_info(wanted.repo, revision=wanted.revision, timeout=_TIMEOUT)
        return [each.rfilename for each in found.siblings or []]
    except errors.HfHubHTTPError as error:
        if error.response is not None and error.response.status_code < 500:
            raise
        unlisted: Exception = error
    except Exception as error:  # no network, whatever error the client's HTTP library raises
        unlisted = error
    folder: str | None
    try:
        folder = snapshot_download(wanted.repo, revision=wanted.revision, local_files_only=True)
    except errors.LocalEntryNotFoundError as error:
        folder = getattr(error, "snapshot_path", None)  # a partial copy, which may suffice
        if folder is None:
            raise errors.LocalEntryNotFoundError(str(error)) from unlisted
    root = Path(folder)
    return [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
