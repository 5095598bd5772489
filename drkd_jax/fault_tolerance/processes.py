"""The processes of one run: how they connect, exchange values, and stop together.

On Slurm, Kubernetes and Open MPI JAX finds its peers by itself; elsewhere each process must be
given the address of the first one, the number of processes, and its own number.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed  # its client has no public name
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from drkd_jax.errors import EXIT_USER, UserError
from drkd_jax.fault_tolerance.interrupt import InterruptedRunError
from drkd_jax.step.sharding import replicated, split

_HOW = (
    "on Slurm, Kubernetes (pip install kubernetes) and Open MPI 4 --distributed is enough; "
    "elsewhere every process needs --coordinator=HOST:PORT --num-processes=N --process-id=I"
)

_FAILED = "drkd/failed"  # key under which a failing process leaves a note
_LEAVING = "drkd/leaving"  # barrier at which all meet after reading it
_PATIENCE = 10.0  # seconds to wait there for the others
_LOOK_EVERY = 1.0  # seconds
_A_MOMENT = 1.0  # seconds for a process to fail by itself, in case all fail alike


def connect(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = 300,
) -> None:
    """Joins the processes of one run. Must come before anything that touches a device.

    Args:
        coordinator: "HOST:PORT" of process 0; None if the job queue provides it.
        num_processes: the number of processes.
        process_id: the number of this process, from 0.
        timeout: seconds to wait for the others. Then the process ends with one line and exit code
            2, as after a `UserError`: queues that retry other codes do not retry this one.

    Raises:
        UserError: the peers cannot be found, or have other numbers of devices; some of the three
            arguments are missing or wrong.
    """
    given = (coordinator, num_processes, process_id)
    if any(value is not None for value in given):
        if any(value is None for value in given):
            raise UserError(
                "--coordinator, --num-processes and --process-id go together: give all three"
            )
        assert num_processes is not None
        assert process_id is not None
        if num_processes < 1 or not 0 <= process_id < num_processes:
            raise UserError(
                f"--process-id={process_id} is not one of the {num_processes} processes, which "
                f"are numbered 0 to {num_processes - 1}"
            )
        host, _, port = str(coordinator).rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise UserError(f"--coordinator={coordinator}: must be HOST:PORT")
    # Only CPUs use this setting, and need it.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX itself would abort the process, with a page of stack trace.
    patience = threading.Timer(timeout, _give_up, (coordinator, timeout))
    patience.daemon = True
    patience.start()
    try:
        jax.distributed.initialize(*given, initialization_timeout=timeout + 60)
    except (ValueError, RuntimeError, KeyError) as error:
        words = " ".join(str(error).split())
        raise UserError(
            f"the processes of this run do not find each other ({words}); {_HOW}"
        ) from (error)
    finally:
        patience.cancel()
    local, everywhere = jax.local_device_count(), jax.device_count()
    if local * jax.process_count() != everywhere:
        raise UserError(
            f"process {jax.process_index()} has {local} of {everywhere} devices: each of the "
            f"{jax.process_count()} processes must have the same number"
        )


def _give_up(coordinator: str | None, timeout: int) -> None:
    where = f"at {coordinator}" if coordinator else "by what the queue says"
    print(
        f"error: the processes of this run do not all meet {where} within {timeout} s: are all of "
        "them started, and does process 0 answer there? --connect-timeout=SECONDS waits longer",
        file=sys.stderr,
        flush=True,
    )
    os._exit(EXIT_USER)


def is_first() -> bool:
    """Whether this process is the one that writes files and prints messages."""
    return jax.process_index() == 0


def broadcast(make: Callable[[], Any]) -> Any:
    """Gives the result of `make` on process 0 (JSON values), or its `UserError`, to all.

    All processes must call it, in the same order.
    """
    if jax.process_count() == 1:
        return make()
    found: dict[str, Any] = {}
    if is_first():
        try:
            found = {"value": make()}
        except UserError as error:
            found = {"error": str(error)}
    text = json.dumps(found).encode()
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.zeros(1 << max(length - 1, 1).bit_length(), np.uint8)  # few sizes, so few programs
    if is_first():
        padded[:length] = np.frombuffer(text, np.uint8)
    answer = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded))[:length].tobytes())
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["value"]


def from_all(values: np.ndarray) -> np.ndarray:
    """Concatenates all processes' rows (`[n, ...]`, with equal shape and dtype on all)."""
    if jax.process_count() == 1:
        return values
    return np.asarray(multihost_utils.process_allgather(values, tiled=True))


def any_process(wanted: bool) -> bool:
    """Whether `wanted` holds on any process. All must call it at the same place, and wait there."""
    return bool(from_all(np.array([wanted])).any())


def allgather(numbers: np.ndarray) -> np.ndarray:
    """The integers of all processes, without duplicates, in ascending order.

    Args:
        numbers: this process's integers, not negative, `[n]`; n may differ between processes.
    """
    longest = int(from_all(np.array([len(numbers)], np.int32)).max())
    padded = np.full(max(longest, 1), -1, np.int32)
    padded[: len(numbers)] = numbers
    found = np.unique(from_all(padded))
    return found[found >= 0]


def listen() -> None:
    """From now on this process ends when another one fails, with its message and exit code.

    If a process failed alone, the others would wait for it in the next collective operation. So it
    leaves a note, and in each of the others a thread polls for one, whatever the rest is doing.
    """
    client = distributed.global_state.client
    if client is None or jax.process_count() == 1:
        return
    over = threading.Event()
    thread = threading.Thread(target=_end_with_others, args=(client, over), daemon=True)
    thread.start()

    def end() -> None:
        over.set()
        thread.join()

    atexit.register(end)  # runs before JAX's own exit handler, which closes the client


def _end_with_others(client: Any, over: threading.Event) -> None:
    text = None
    while text is None:
        try:
            text = client.key_value_try_get(_FAILED)
        except RuntimeError as error:
            if "NOT_FOUND" not in str(error):  # process 0 is gone, and JAX itself ends all others
                return
            if over.wait(_LOOK_EVERY):
                return
    note = json.loads(text)
    if over.wait(_A_MOMENT) or _Leaving.begun:
        return
    words = f"error: process {note['process']} of {jax.process_count()}: {note['words']}"
    print(words, file=sys.stderr)
    _leave_together(client, note["code"])


def leave(code: int, words: str = "") -> None:
    """Ends a failed process among several immediately; the others follow (see `listen`).

    A normal exit would wait for all others, and they for this process.

    Args:
        code: exit code of all processes.
        words: the message that the others print.
    """
    client = distributed.global_state.client
    if client is None or jax.process_count() == 1:
        return
    _Leaving.begun = True
    note = {"code": code, "process": jax.process_index(), "words": words}
    with contextlib.suppress(RuntimeError):  # another process was first, or process 0 is gone
        client.key_value_set(_FAILED, json.dumps(note))
    _leave_together(client, code)


class _Leaving:
    """Records whether this process failed by itself."""

    begun = False


def _leave_together(client: Any, code: int) -> None:
    # Process 0 holds the notes, so it must not exit before all have read them.
    with contextlib.suppress(RuntimeError):
        client.wait_at_barrier(_LEAVING, int(_PATIENCE * 1000))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class AnyProcess:
    """Whether any process wants to stop: a non-blocking `any_process`.

    A signal reaches some processes earlier than others, and a process that stopped alone would
    leave the others waiting for ever. So every call starts a reduction over all processes and
    returns the result of the one `late` calls before, which is already finished. A single process
    gets its answer at once.

    Args:
        mesh: all devices.
        late: number of calls between a question and its answer.
    """

    def __init__(self, mesh: Mesh, late: int):
        self._mesh, self._late = mesh, late
        self._open: deque[jax.Array] = deque()
        self._any = jax.jit(jnp.max, out_shardings=replicated(mesh))

    def __call__(self, wanted: bool) -> bool:
        """The answer to the question asked `late` calls before.

        Args:
            wanted: whether this process wants to stop.
        """
        if jax.process_count() == 1:
            return wanted
        mine = np.full(jax.local_device_count(), wanted, np.int32)
        wants = jax.make_array_from_process_local_data(split(self._mesh), mine)
        self._open.append(self._any(wants))
        return len(self._open) > self._late and bool(self._open.popleft())


def stop_unbegun(asked: str | None, start: int = 0) -> None:
    """Ends a session that received a signal before its first step; every process calls it.

    Args:
        asked: the signal's name; None if this process received none.
        start: the step that the session would have continued from.

    Raises:
        InterruptedRunError: some process was asked to stop; there is nothing to save.
    """
    if any_process(asked is not None):
        begun = f"the checkpoint of step {start}" if start else "the beginning"
        words = f"{asked or 'asked to stop'} before the first step: nothing to save"
        raise InterruptedRunError(f"{words}; the same command goes on from {begun}")
