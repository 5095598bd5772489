"""Files of Hugging Face's hub, fetched by its own client, which keeps, resumes and locks them.

The client is the extra `hub`. Its cache is its own (`HF_HOME`), and its switches hold:
`HF_HUB_OFFLINE=1` stays on this machine, `HF_TOKEN` opens gated and private repositories.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from drkd_jax.errors import UserError

_FORM = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([^:@\s]+))?(?::([^\s]+))?")
_TIMEOUT = 10.0  # seconds
_KINDS = (".safetensors", ".pth", ".pt", ".pkl", ".bin")
# Same keys and shapes as a plain ResNet, with blurred strides that no file shows.
_BLURRED = re.compile(r"resnet(blur|aa)\d")


class HubName(NamedTuple):
    """A name of the form `hf:OWNER/REPO[@REVISION][:FILE]`."""

    repo: str
    revision: str | None  # a branch, a tag or a commit; None: the main branch
    file: str | None


def parse_hub_name(name: str) -> HubName:
    """Takes a name apart.

    Raises:
        UserError: it is not of the form.
    """
    found = _FORM.fullmatch(name)
    if not found:
        raise UserError(f"{name}: is not of the form hf:OWNER/REPO, hf:OWNER/REPO@REVISION:FILE")
    return HubName(*found.groups())


def fetch_from_hub(name: str) -> Path:
    """The file behind a name, in the hub client's cache; fetched where it is not there.

    Without a FILE it is the one that `choose_file` chooses.

    Raises:
        UserError: the client is not installed, the hub cannot be reached and the file was never
            fetched, there is no such repository, revision or file, or it is not for everybody.
    """
    if find_spec("huggingface_hub") is None:
        raise UserError(
            f"{name}: needs huggingface_hub: pip install 'drkd-jax[hub]' (or pip install '.[hub]' "
            "in a checkout)"
        )
    from huggingface_hub import errors, hf_hub_download, utils

    if not os.environ.get("HF_HUB_VERBOSITY"):  # what ends a fetch is said here, in one line
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
            f"{name}: its owner wants to be asked first; do that on {page}, then log in (hf auth "
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
        why = "HF_HUB_OFFLINE is set" if offline else _words(error.__cause__) or "no network"
        raise UserError(
            f"{name}: was not fetched to this machine before, and the hub cannot be asked ({why}); "
            "fetch it where there is a network, or give a path"
        ) from error
    except errors.EntryNotFoundError as error:
        raise UserError(f"{name}: the repository has no file {wanted.file}; see {page}") from error
    except Exception as error:  # of the client's HTTP library, another one in each of its versions
        raise UserError(f"{name}: cannot be fetched from the hub ({_words(error)})") from error


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
        shown = ", ".join(weights[:12]) + (", ..." if len(weights) > 12 else "")
        raise UserError(
            f"{name}: the repository holds {len(weights)} files of weights; say which, as "
            f"{name}:{weights[0]} ({shown})"
        )
    raise UserError(f"{name}: the repository holds no file of weights ({', '.join(_KINDS)})")


def _words(error: BaseException | None) -> str:
    """The first words of an error, in one line; "" of none."""
    return "" if error is None else " ".join(str(error).split())[:200] or type(error).__name__


def _files(wanted: HubName) -> list[str]:
    """The files of a repository: the hub's list, or without the hub those fetched before."""
    from huggingface_hub import HfApi, errors, snapshot_download

    try:
        # Asked once; `list_repo_files` would try for half a minute where there is no network.
        found = HfApi().model_info(wanted.repo, revision=wanted.revision, timeout=_TIMEOUT)
        return [each.rfilename for each in found.siblings or []]
    except errors.HfHubHTTPError as error:
        if error.response is not None and error.response.status_code < 500:
            raise
        unlisted: Exception = error
    except Exception as error:  # no network, whatever the client's HTTP library calls that
        unlisted = error
    folder: str | None
    try:
        folder = snapshot_download(wanted.repo, revision=wanted.revision, local_files_only=True)
    except errors.LocalEntryNotFoundError as error:
        folder = getattr(error, "snapshot_path", None)  # a part of it, which may do
        if folder is None:
            raise errors.LocalEntryNotFoundError(str(error)) from unlisted
    root = Path(folder)
    return [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
