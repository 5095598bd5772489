"""How processes find each other: by what Slurm, Kubernetes and Open MPI leave in the environment.

No network: the service and the client that JAX would start are recorded instead.
"""

import socket
import sys
import types
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax._src import distributed, xla_bridge
from jax._src.clusters import k8s_cluster

from drkd_jax.errors import UserError
from drkd_jax.training import processes
from drkd_jax.training.sharding import data_mesh


@pytest.fixture
def started(monkeypatch):
    """What JAX would have started: coordinator, processes, own number, devices."""
    seen = {}
    for name in ("SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    state = distributed.global_state
    for name in ("client", "service", "preemption_sync_manager", "coordinator_address"):
        monkeypatch.setattr(state, name, None)
    for name in ("process_id", "num_processes"):
        monkeypatch.setattr(state, name, getattr(state, name))
    jax.devices()  # so that no device is looked for with the fake client
    monkeypatch.setattr(xla_bridge, "backends_are_initialized", lambda: False)

    def service(address, count, **_):
        seen["service"] = count
        return SimpleNamespace(shutdown=lambda: None)

    def client(address, number, **settings):
        seen.update(coordinator=address, process=number, timeout=settings["init_timeout"])
        return SimpleNamespace(connect=lambda: None, shutdown=lambda: None)

    monkeypatch.setattr(
        distributed,
        "_jax",
        SimpleNamespace(
            get_distributed_runtime_service=service,
            get_distributed_runtime_client=client,
            create_preemption_sync_manager=lambda: SimpleNamespace(
                initialize=lambda _: None, shutdown=lambda: None
            ),
        ),
    )
    monkeypatch.setattr(distributed.config, "update", lambda *_: None)  # visible GPUs
    yield seen
    seen["count"] = state.num_processes


def test_slurm_says_it_all(started, monkeypatch):
    for name, value in {
        "SLURM_JOB_ID": "4242",
        "SLURM_STEP_NODELIST": "gpu[07-08],gpu12",
        "SLURM_NTASKS": "3",
        "SLURM_PROCID": "2",
        "SLURM_LOCALID": "0",
        "SLURM_STEP_NUM_NODES": "3",
    }.items():
        monkeypatch.setenv(name, value)
    processes.connect(timeout=7)
    assert started["coordinator"].startswith("gpu07:")
    assert started["process"] == 2
    assert started["timeout"] == 7
    assert distributed.global_state.num_processes == 3
    assert "service" not in started  # which only process 0 starts


def test_open_mpi_says_it_all(started, monkeypatch):
    for name, value in {
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": "0",
        "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    }.items():
        monkeypatch.setenv(name, value)
    processes.connect()
    assert started["coordinator"].startswith("10.96.0.1:")
    assert started["process"] == 0
    assert started["service"] == 2


def test_kubernetes_says_it_all(started, monkeypatch):
    pod = SimpleNamespace(
        metadata=SimpleNamespace(
            name="drkd-1-x",
            labels={"job-name": "drkd"},
            owner_references=[SimpleNamespace(controller=True, kind="Job")],
        ),
        spec=SimpleNamespace(subdomain="drkd-pods"),
    )
    job = SimpleNamespace(
        metadata=SimpleNamespace(name="drkd", labels={}), spec=SimpleNamespace(parallelism=4)
    )
    library = types.ModuleType("kubernetes")
    library.config = SimpleNamespace(load_incluster_config=lambda: None)
    library.client = SimpleNamespace(
        CoreV1Api=lambda: SimpleNamespace(
            list_namespaced_pod=lambda **_: SimpleNamespace(items=[pod])
        ),
        BatchV1Api=lambda: SimpleNamespace(read_namespaced_job=lambda **_: job),
        exceptions=SimpleNamespace(ApiException=type("ApiException", (Exception,), {})),
    )
    monkeypatch.setitem(sys.modules, "kubernetes", library)
    cluster = k8s_cluster.K8sCluster
    monkeypatch.setattr(cluster, "_namespace", classmethod(lambda cls: "default"))
    monkeypatch.setattr(socket, "gethostbyname", lambda _: "10.0.0.9")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("HOSTNAME", "drkd-1-x")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    processes.connect()
    assert started["coordinator"] == "drkd-0.drkd-pods:55527"
    assert started["process"] == 1
    assert distributed.global_state.num_processes == 4


def test_elsewhere_it_is_said(started):
    processes.connect("node1:1234", 2, 0)
    assert (started["coordinator"], started["process"], started["service"]) == ("node1:1234", 0, 2)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((), r"do not find each other .*--coordinator=HOST:PORT --num-processes=N"),
        (("node1:1234", None, 0), "go together"),
        (("node1:1234", 2, 2), "--process-id=2 is not one of the 2 processes"),
        (("node1", 2, 1), "HOST:PORT is wanted"),
    ],
)
def test_what_is_missing_is_told(started, given, words):
    with pytest.raises(UserError, match=words):
        processes.connect(*given)


def test_a_process_alone_asks_nobody():
    assert processes.is_first()
    assert processes.from_first(lambda: [1, "a"]) == [1, "a"]
    np.testing.assert_array_equal(processes.from_all(np.arange(3)), np.arange(3))
    vote = processes.Vote(data_mesh(), late=3)
    assert [vote(wanted) for wanted in (False, True)] == [False, True]
    processes.leave(3)  # does nothing here
    assert jax.process_count() == 1
