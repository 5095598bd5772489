"""What the environment says about the processes of one run, and where process 0 is.

JAX finds it out on Kubernetes and with Open MPI 4. Slurm's variables are read here, since a shell
in a job has nearly the same as a task; MPI's others say how many processes there are and which one
this is, but not where the first one is.
"""

from __future__ import annotations

import dataclasses
import re
import socket
from collections.abc import Mapping

from drkd_jax.errors import UserError

_OPEN_MPI_4 = "OMPI_MCA_orte_hnp_uri"  # by which JAX recognises it
_JOB = "SLURM_JOB_ID"
# name: its number of processes, this one's number, and the number among those of this machine
_LAUNCHERS = {
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "MPICH or Intel MPI": ("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID"),
    "Slurm": ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"),
}
_NUMBER_HERE = {
    "Open MPI": "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MPICH or Intel MPI": "MPI_LOCALNRANKS",
}
_REACH = 3.0  # seconds to try the coordinator's port


@dataclasses.dataclass(frozen=True)
class Launched:
    """One of several processes, as its launcher numbers them.

    Attributes:
        by: the launcher's name.
        count: the number of processes.
        index: the number of this process, from 0.
        local: its number among those of this machine.
        alone: whether it is the only one of this machine, which then uses all its GPUs.
    """

    by: str
    count: int
    index: int
    local: int
    alone: bool = False


@dataclasses.dataclass(frozen=True)
class Peers:
    """Arguments of `jax.distributed.initialize`; None: JAX finds it out.

    Attributes:
        coordinator: "HOST:PORT" of process 0.
        count: the number of processes.
        index: the number of this process.
        device: the one GPU that this process uses; None: all (or JAX's choice, if it is to find
            the rest).
    """

    coordinator: str | None = None
    count: int | None = None
    index: int | None = None
    device: int | None = None


def launched(environ: Mapping[str, str]) -> Launched | None:
    """How a launcher started this process; None if none did, or it says so in another way."""
    for by, names in _LAUNCHERS.items():
        found = [environ.get(name, "") for name in names]
        if all(value.isdecimal() for value in found):  # hydra inside Slurm: both, MPI's count
            count, index, local = map(int, found)
            return Launched(by, count, index, local, _number_here(by, environ) == "1")
    return None


def _number_here(by: str, environ: Mapping[str, str]) -> str:
    """The number of processes on this machine; empty if the launcher does not say it."""
    if by != "Slurm":
        return environ.get(_NUMBER_HERE[by], "")
    nodes: list[str] = []  # "2(x3),1": 2 on each of three machines, 1 on a fourth
    for part in environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        tasks, _, times = part.rstrip(")").partition("(x")
        nodes += [tasks] * (int(times) if times.isdecimal() else 1)
    node = environ.get("SLURM_NODEID", "")
    return nodes[int(node)] if node.isdecimal() and int(node) < len(nodes) else ""


def find_peers(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    environ: Mapping[str, str],
) -> Peers:
    """Completes what the command line says by what the launcher says.

    Args:
        coordinator: "HOST:PORT" of process 0; None if the launcher provides it.
        num_processes: the number of processes; None likewise.
        process_id: the number of this process; None likewise.
        environ: the environment's variables.

    Raises:
        UserError: arguments are missing or wrong; the message says which to add.
    """
    mine = launched(environ)
    one_seen = re.fullmatch(r"[^,]+", environ.get("CUDA_VISIBLE_DEVICES", "")) is not None
    if coordinator is None:
        if num_processes is not None or process_id is not None:
            raise UserError(
                "--coordinator, --num-processes and --process-id go together: give all three"
            )
        if _OPEN_MPI_4 in environ or (mine is None and _JOB not in environ):
            return Peers(device=0 if one_seen else None)
        if mine is not None and mine.by != "Slurm":
            raise UserError(
                f"{mine.by} started this process as number {mine.index} of {mine.count}, but does "
                "not say where number 0 runs: add --coordinator=HOST:PORT, with the address of "
                "the first machine and a port that is free there"
            )
        coordinator = _of_slurm(environ)
    elif (num_processes is None) != (process_id is None):
        raise UserError("--num-processes and --process-id go together")
    if num_processes is None or process_id is None:
        if mine is None:
            raise UserError(
                f"--coordinator={coordinator} alone is enough under mpirun, mpiexec and srun, "
                "which number the processes; here --num-processes=N and --process-id=I are missing"
            )
        num_processes, process_id = mine.count, mine.index
    if num_processes < 1 or not 0 <= process_id < num_processes:
        raise UserError(
            f"--process-id={process_id} is not one of the {num_processes} processes, which "
            f"are numbered 0 to {num_processes - 1}"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator={coordinator}: must be HOST:PORT")
    device = None
    if mine is not None and (mine.count, mine.index) == (num_processes, process_id):
        if one_seen:
            device = 0
        elif not mine.alone:
            device = mine.local
    return Peers(coordinator, num_processes, process_id, device)


def _of_slurm(environ: Mapping[str, str]) -> str:
    """The address of the first task, with the port that JAX would choose too."""
    job, hosts = environ.get(_JOB, ""), environ.get("SLURM_STEP_NODELIST", "")
    tasks, of_step = environ.get("SLURM_NTASKS", ""), environ.get("SLURM_STEP_NUM_TASKS")
    if not hosts or not tasks.isdecimal() or (of_step is not None and of_step != tasks):
        raise UserError(
            f"this is a shell or script of Slurm's job {job or '(without a number)'}, not one of "
            "several tasks: put srun in front (srun python train.py --distributed ...), or leave "
            "--distributed out to train on this machine alone"
        )
    port = environ.get("JAX_COORDINATOR_PORT") or str(int(job) % 2**12 + 2**16 - 2**12)
    return f"{first_host(hosts)}:{port}"


def first_host(hosts: str) -> str:
    """The first name of a list as Slurm writes it: "a[07-08,12]-ib,b" gives "a07-ib"."""
    return re.sub(r"\[([^],-]+)[^]]*\]", r"\1", hosts).partition(",")[0]


def known(name: str) -> bool:
    """Whether this machine knows an address of that name."""
    try:
        return bool(socket.getaddrinfo(name, None))
    except OSError:
        return False


def reached(coordinator: str) -> str:
    """Who is missing, as far as the coordinator's address shows.

    Args:
        coordinator: "HOST:PORT" of process 0.
    """
    host, _, port = coordinator.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACH).close()
    except socket.gaierror:
        return f"this machine does not know the name {host}."
    except OSError as error:
        why = error.strerror or str(error)
        return f"nothing answers there ({why}): does process 0 run on that machine?"
    return "it answers there, but others are missing: are all started, each with its own number?"
