"""The processes of one run: how they connect, exchange values, and stop together.

`launcher.py` says what each process has to be told; the rest comes from its environment.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed  # its client has no public name
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from drkd_jax.errors import EXIT_USER, UserError, one_line
from drkd_jax.fault_tolerance.interrupt import InterruptedRunError
from drkd_jax.fault_tolerance.launcher import Peers, find_peers, known, reached
from drkd_jax.step.sharding import replicated, split

_HOW = (
    "with srun, on Kubernetes (pip install kubernetes) and with Open MPI 4 --distributed is "
    "enough; other MPIs need --coordinator=HOST:PORT; elsewhere every process needs "
    "--coordinator=HOST:PORT --num-processes=N --process-id=I"
)
_SOON = 20.0  # seconds until a process says that it waits for the others

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
    """Joins the processes of one run. Must come before anything that uses a device.

    Args:
        coordinator: "HOST:PORT" of process 0; None if the job queue provides it.
        num_processes: the number of processes; None if the launcher says it.
        process_id: the number of this process, from 0; None likewise.
        timeout: seconds to wait for the others. Then the process ends with one line and exit code
            2, as after a `UserError`: queues that retry other codes do not retry this one.

    Raises:
        UserError: the peers cannot be found, or some of the three arguments are missing or wrong.
    """
    peers = find_peers(coordinator, num_processes, process_id, os.environ)
    # Only CPUs use this setting, and need it.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX itself would abort the process, with a page of stack trace.
    timers = [
        threading.Timer(_SOON, _say_that_it_waits, (peers, timeout)),
        threading.Timer(timeout, _give_up, (peers.coordinator, timeout)),
    ]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        _initialize(peers, timeout)
    except Exception as error:  # the clusters' libraries have their own kinds
        words = one_line(error)
        if "Failed to start RPC server" in words:
            address = str(distributed.global_state.coordinator_address)
            raise UserError(
                f"process 0 cannot listen at port {address.rpartition(':')[2]} of this machine, "
                "where another program does: name another, the same for all processes, in "
                "--coordinator or else in the variable JAX_COORDINATOR_PORT"
            ) from error
        raise UserError(
            f"the processes of this run do not find each other ({words}); {_HOW}"
        ) from error
    finally:
        for timer in timers:
            timer.cancel()


def _initialize(peers: Peers, timeout: int) -> None:
    until = time.monotonic() + timeout
    while True:
        try:
            return jax.distributed.initialize(
                peers.coordinator,
                peers.count,
                peers.index,
                local_device_ids=None if peers.device is None else [peers.device],
                cluster_detection_method="deactivate" if peers.coordinator else None,
                initialization_timeout=timeout + 60,
            )
        except RuntimeError as error:
            # Half a minute is all that JAX gives the first pod to get a node, and so a name.
            if "Retry failed" not in str(error) or time.monotonic() > until:
                raise


def check_devices() -> None:
    """Opens this process's devices and meets those of the others, after `connect` and `listen`.

    Raises:
        UserError: they cannot be opened, or the processes have different numbers of them.
    """
    try:
        local, everywhere = jax.local_device_count(), jax.device_count()
    except RuntimeError as error:
        words, name = one_line(error), socket.gethostname()
        if "gloo" in words and not known(name):
            words = (
                f"it does not know its own name {name}, by which CPUs meet: add it to /etc/hosts, "
                "with an address that the other machines reach"
            )
        raise UserError(f"the devices of this machine cannot be used: {words}") from error
    if local * jax.process_count() != everywhere:
        raise UserError(
            f"process {jax.process_index()} has {local} of {everywhere} devices: each of the "
            f"{jax.process_count()} processes must have the same number"
        )


def _where(coordinator: str | None) -> tuple[str, str]:
    """Where the processes meet, and who is missing there, as far as it is known."""
    coordinator = coordinator or distributed.global_state.coordinator_address
    if coordinator is None:
        return "where the queue says", "no name leads to process 0 yet: is it started?"
    return f"at {coordinator}", reached(coordinator)


def _say_that_it_waits(peers: Peers, timeout: int) -> None:
    where, missing = _where(peers.coordinator)
    who = "this process" if peers.index is None else f"process {peers.index}"
    print(
        f"{who} waits for the others {where}, up to {timeout} s: {missing}",
        file=sys.stderr,
        flush=True,
    )


def _give_up(coordinator: str | None, timeout: int) -> None:
    where, missing = _where(coordinator)
    print(
        f"error: the processes of this run do not all meet {where} within {timeout} s: {missing} "
        "--connect-timeout=SECONDS waits longer",
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


def _count() -> int:
    """The number of processes, also of one whose devices cannot be opened."""
    return distributed.global_state.num_processes or 1


def listen() -> None:
    """From now on this process ends when another one fails, with its message and exit code.

    If a process failed alone, the others would wait for it in the next collective operation. So it
    leaves a note, and in each of the others a thread polls for one, whatever the rest is doing.
    """
    client = distributed.global_state.client
    if client is None or _count() == 1:
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
    words = f"error: process {note['process']} of {_count()}: {note['words']}"
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
    if client is None or _count() == 1:
        return
    _Leaving.begun = True
    note = {"code": code, "process": distributed.global_state.process_id, "words": words}
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
