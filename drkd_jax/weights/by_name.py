"""Weights that are named, not placed: from an address, from Hugging Face's hub, or published.

| name | what it is |
|---|---|
| `https://HOST/FILE.pth#sha256=HEX` | an address with its file's sum (`download.py`) |
| `hf:OWNER/REPO[@REVISION][:FILE]` | a file of the hub (`hub.py`) |
| `torchvision:resnet50`, `mmdet:...` | a short name of an address (`published.py`) |

A name is kept as it was given wherever it is recorded; only where a file is opened does it become
a path, from a cache if the file was fetched before.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from drkd_jax.errors import UserError
from drkd_jax.weights.download import fetch_address
from drkd_jax.weights.hub import fetch_from_hub
from drkd_jax.weights.published import PREFIXES, PUBLISHED

_HUB = "hf:"
_ADDRESSES = ("https://", "http://")


def is_name(text: str) -> bool:
    """Whether a text names weights by one of the forms above; anything else is a path."""
    return text.startswith((_HUB, *_ADDRESSES, *PREFIXES))


def local_file(place: str | Path) -> Path:
    """The file on this machine behind a name, fetched if need be; a path is returned as it is.

    Args:
        place: a name, or a path.

    Raises:
        UserError: a name of no known form, or a file that cannot be fetched or has another sum.
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
