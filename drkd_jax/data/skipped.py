"""``on_error = "skip"``: counts and lists the images left out, and stops if there are too many.

An image that cannot be read becomes a padding image: its row of the batch stays, all zeros and
invalid. So all other rows, the order and the number of batches are the same as without the fault,
whatever the threads, the workers or the step from which a run continued.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from drkd_jax.data.sources.records import Source
from drkd_jax.errors import UserError
from drkd_jax.words import counted

SKIPPED_FILE = "skipped.jsonl"
SHARE = 0.01  # largest share of the images that may be left out

_log = logging.getLogger(__name__)


class SkipList:
    """The images of a source that could not be read, each once.

    Args:
        source: their source. Entries of its instances file that were left out are listed too.
        total: images in use over all hosts; it is an error if over 1 % of them are left out,
            including those of other hosts, after ``share``.
        path: file of the list, one json object per line, each fault once, even over several runs.
            None writes no file.
        silent: gives no warnings: for all hosts but the first, which gets theirs by ``share``.

    Attributes:
        reasons: why each image was left out since this object was created, by its position. The
            faults that an older run listed either occur again or have been corrected.
    """

    def __init__(self, source: Source, total: int, path: Path | None, *, silent: bool = False):
        self._source, self._total, self._path = source, total, path
        self._level = logging.DEBUG if silent else logging.WARNING
        self.reasons: dict[int, str] = {}
        self._listed, self._whole = _read(path) if path is not None else (set(), True)
        faults = list(map(str, source.faults))
        for fault in faults:
            self._write({"source": source.spec, "entry": fault})
        if faults:
            words = "%s: %s of its file left out"
            _log.log(self._level, words, source.spec, counted(len(faults), "entry"))

    def add(self, indices: Int[np.ndarray, "n"]) -> None:
        """Records images that are missing from a batch.

        Raises:
            UserError: more than 1 % of the images could not be read.
        """
        for index in map(int, indices):
            if index in self.reasons:
                continue
            # Read again to find the reason, as the batch may come from another process.
            reason = "was not readable a moment ago; now it is"
            try:
                self._source.record(index)
            except UserError as error:
                reason = str(error)
            self.reasons[index] = reason
            words = "image skipped (%d so far): %s"
            _log.log(self._level, words, len(self.reasons), reason)
            image_id = self._source.meta(index).image_id
            image = {"source": self._source.spec, "index": index, "image_id": image_id}
            self._write({**image, "reason": reason})
        if len(self.reasons) > SHARE * self._total:
            where = f"; they are listed in {self._path}" if self._path else ""
            raise UserError(
                f"{self._source.spec}: {len(self.reasons)} of {self._total} images cannot be "
                f"read, more than {SHARE:.0%}, the last one because: "
                f"{next(reversed(self.reasons.values()))}{where}. Fix them, or leave them out of "
                "the instances file (`prepare --check SOURCE` lists all faults)"
            )

    def share(self, allgather: Callable[[np.ndarray], np.ndarray]) -> None:
        """Records what other hosts left out; all of them must call it at the same place.

        Args:
            allgather: takes integers of this host ``[n]`` and returns those of all hosts.

        Raises:
            UserError: more than 1 % of the images could not be read, over all hosts.
        """
        self.add(allgather(np.array(sorted(self.reasons), np.int64)))

    def _write(self, line: dict[str, Any]) -> None:
        key = _key(line)
        if self._path is None or key in self._listed:
            return
        self._listed.add(key)
        try:
            with self._path.open("a") as file:
                file.write(("" if self._whole else "\n") + json.dumps(line) + "\n")
            self._whole = True
        except OSError as error:
            raise UserError(f"{self._path}: cannot be written ({error.strerror})") from error


def _read(path: Path) -> tuple[set[tuple[str, str]], bool]:
    """The faults already listed, and whether the last line is complete (a kill may truncate it)."""
    listed, text = set(), path.read_text(errors="replace") if path.exists() else ""
    for line in text.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            listed.add(_key(json.loads(line)))
    return listed, not text or text.endswith("\n")


def _key(line: dict[str, Any]) -> tuple[str, str]:
    return line["source"], line["entry"] if "entry" in line else f"image {line['index']}"
