"""What the variables of srun, mpirun and mpiexec say about a process, and what is asked for."""

import socket

import pytest

from drkd_jax.errors import UserError
from drkd_jax.fault_tolerance.launcher import Peers, find_peers, first_host, reached

# As mpirun of Open MPI 5.0.11 and mpiexec of MPICH 5.0.2 and Intel MPI 2021.19 set them.
OPEN_MPI_5 = {
    "OMPI_VERSION": "5.0.11",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "PMIX_RANK": "3",
}
OPEN_MPI_4 = OPEN_MPI_5 | {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911"}
HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
# As srun sets them, by its manual.
SLURM = {
    "SLURM_JOB_ID": "4242",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "node[01-02]",
    "SLURM_STEP_NUM_TASKS": "4",
}
AT = "node01:12345"


@pytest.mark.parametrize("environ", [OPEN_MPI_5, OPEN_MPI_4, HYDRA, SLURM])
def test_the_launcher_numbers_the_processes(environ):
    assert find_peers(AT, None, None, environ) == Peers(AT, 4, 3, device=1)
    assert find_peers(AT, None, None, environ | {"CUDA_VISIBLE_DEVICES": "1"}).device == 0
    assert find_peers(AT, None, None, environ | {"CUDA_VISIBLE_DEVICES": "0,1"}).device == 1
    # What the command line says counts, and then the launcher's numbers mean something else.
    assert find_peers(AT, 2, 1, environ) == Peers(AT, 2, 1, device=None)


@pytest.mark.parametrize(
    ("environ", "here"),
    [
        (OPEN_MPI_5, {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}),
        (HYDRA, {"MPI_LOCALNRANKS": "1"}),
        (SLURM, {"SLURM_STEP_TASKS_PER_NODE": "1(x4)", "SLURM_NODEID": "3"}),
        (SLURM, {"SLURM_STEP_TASKS_PER_NODE": "2,1(x2)", "SLURM_NODEID": "2"}),
    ],
)
def test_the_only_process_of_a_machine_uses_all_its_gpus(environ, here):
    assert find_peers(AT, None, None, environ | here) == Peers(AT, 4, 3, device=None)
    assert find_peers(AT, None, None, environ | here | {"CUDA_VISIBLE_DEVICES": "0"}).device == 0


@pytest.mark.parametrize(
    "here",
    [
        {"SLURM_STEP_TASKS_PER_NODE": "1,2(x2)", "SLURM_NODEID": "2"},
        {"SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_NODEID": "1"},  # not understood
        {"SLURM_STEP_TASKS_PER_NODE": "", "SLURM_NODEID": "0"},
    ],
)
def test_processes_that_share_a_machine_use_a_gpu_each(here):
    assert find_peers(AT, None, None, SLURM | here) == Peers(AT, 4, 3, device=1)


def test_mpi_inside_slurm_counts():
    proxies = SLURM | {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}
    for environ in (OPEN_MPI_5, HYDRA):
        assert find_peers(AT, None, None, proxies | environ) == Peers(AT, 4, 3, device=1)


def test_open_mpi_4_and_kubernetes_are_left_to_jax():
    assert find_peers(None, None, None, OPEN_MPI_4) == Peers()
    assert find_peers(None, None, None, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) == Peers()


@pytest.mark.parametrize(("environ", "by"), [(OPEN_MPI_5, "Open MPI"), (HYDRA, "MPICH or Intel")])
def test_other_mpis_need_an_address(environ, by):
    words = rf"{by}.* as number 3 of 4, but .* add --coordinator=HOST:PORT"
    for more in ({}, SLURM):
        with pytest.raises(UserError, match=words):
            find_peers(None, None, None, more | environ)


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("localhost", "localhost"),
        ("node001,host2", "node001"),
        ("node[01-02]", "node01"),
        ("gpu[007,010-015],host2", "gpu007"),
        ("gpu[07-08]-ib,b", "gpu07-ib"),
        ("rack[1-2]node[03-04]", "rack1node03"),
    ],
)
def test_slurm_says_where_the_first_task_is(hosts, first):
    assert first_host(hosts) == first
    job = SLURM | {"SLURM_STEP_NODELIST": hosts}
    assert find_peers(None, None, None, job) == Peers(f"{first}:61586", 4, 3, device=1)
    job["JAX_COORDINATOR_PORT"] = "7777"
    assert find_peers(None, None, None, job).coordinator == f"{first}:7777"


SCRIPT = {name: SLURM[name] for name in ("SLURM_JOB_ID", "SLURM_NTASKS")}
ROLE = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    "environ",
    [
        SCRIPT,  # salloc's shell, as it was
        SCRIPT | ROLE,  # a batch script without srun
        SLURM | ROLE | {"SLURM_STEP_NUM_TASKS": "1"},  # salloc's shell as a step of its own
    ],
)
def test_a_shell_of_slurm_does_not_wait_for_others(environ):
    with pytest.raises(UserError, match=r"script of Slurm's job 4242, .* put srun in"):
        find_peers(None, None, None, environ)
    assert find_peers(AT, 2, 0, environ) == Peers(AT, 2, 0)  # two of them, by hand


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((AT, None, None), "alone is enough under mpirun.* --num-processes=N and"),
        ((AT, 2, None), "--num-processes and --process-id go together"),
        ((None, 2, 0), "give all three"),
    ],
)
def test_what_is_missing_is_told(given, words):
    with pytest.raises(UserError, match=words):
        find_peers(*given, {})


def test_who_is_missing_is_found_out():
    with socket.create_server(("localhost", 0)) as server:
        place = f"localhost:{server.getsockname()[1]}"
        assert "it answers there, but others are missing" in reached(place)
    assert "nothing answers there (Connection refused)" in reached(place)
    assert reached("no-such-host.invalid:1").startswith("this machine does not know the name no-")
