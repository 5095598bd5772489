"""How processes find each other: by the environment variables of Slurm, Kubernetes and Open MPI.

Needs no network: JAX's service and client are recorded instead of started.
"""

import json
import queue
import socket
import sys
import time
import types
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax._src import distributed, xla_bridge
from jax._src.clusters import k8s_cluster

from drkd_jax.errors import UserError
from drkd_jax.fault_tolerance import processes
from drkd_jax.fault_tolerance.launcher import Peers
from drkd_jax.step.sharding import data_mesh


@pytest.fixture
def started(monkeypatch):
    """The arguments of JAX's start: coordinator, processes, own number, devices."""
    seen = {}
    for name in ("SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    state = distributed.global_state
    for name in ("client", "service", "preemption_sync_manager", "coordinator_address"):
        monkeypatch.setattr(state, name, None)
    for name in ("process_id", "num_processes"):
        monkeypatch.setattr(state, name, getattr(state, name))
    jax.devices()  # before the fake client is used
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
    assert started["timeout"] == 7 + 60  # ours comes first
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
        (("node1", 2, 1), "must be HOST:PORT"),
        ((":1234", 2, 1), "must be HOST:PORT"),
        (("node1:http", 2, 1), "must be HOST:PORT"),
        (("node1:1234", 0, 0), "--process-id=0 is not one of the 0 processes"),
    ],
)
def test_what_is_missing_is_told(started, given, words):
    with pytest.raises(UserError, match=words):
        processes.connect(*given)


class Notes:
    """The part of JAX's client that `listen` and `leave` use."""

    def __init__(self):
        self.notes = {}

    def key_value_set(self, key, value):
        if key in self.notes:
            raise RuntimeError("ALREADY_EXISTS")
        self.notes[key] = value

    def key_value_try_get(self, key):
        if key not in self.notes:
            raise RuntimeError("NOT_FOUND: Config key is not found")
        return self.notes[key]

    def wait_at_barrier(self, key, milliseconds):
        raise RuntimeError("DEADLINE_EXCEEDED: one was gone before")


@pytest.fixture
def notes(monkeypatch):
    notes, codes = Notes(), queue.Queue()
    monkeypatch.setattr(distributed.global_state, "client", notes)
    monkeypatch.setattr(distributed.global_state, "num_processes", 3)
    monkeypatch.setattr(processes, "_A_MOMENT", 0.05)
    monkeypatch.setattr(processes, "_LOOK_EVERY", 0.01)
    ends = []
    monkeypatch.setattr(processes.atexit, "register", ends.append)
    monkeypatch.setattr(processes.os, "_exit", codes.put)
    monkeypatch.setattr(processes._Leaving, "begun", False)
    yield notes, codes
    for end in ends:
        end()


def test_who_fails_alone_takes_the_others_along(notes, monkeypatch, capsys):
    note, codes = notes
    processes.leave(2, "x.png: is empty")
    assert codes.get(timeout=10) == 2
    (content,) = note.notes.values()
    assert json.loads(content) == {"code": 2, "process": 0, "words": "x.png: is empty"}
    monkeypatch.setattr(processes._Leaving, "begun", False)
    processes.listen()  # as another one
    assert codes.get(timeout=10) == 2
    assert capsys.readouterr().err == "error: process 0 of 3: x.png: is empty\n"


def test_who_fails_too_says_only_its_own(notes, capsys):
    note, codes = notes
    processes.listen()
    note.key_value_set(processes._FAILED, json.dumps({"code": 2, "process": 1, "words": "x"}))
    processes.leave(3, "y")
    assert codes.get(timeout=10) == 3
    time.sleep(0.2)
    assert codes.empty()
    assert "process 1" not in capsys.readouterr().err


def test_who_waits_in_vain_says_so_in_one_line(started, monkeypatch, capsys):
    codes = queue.Queue()
    monkeypatch.setattr(processes.os, "_exit", codes.put)
    left = []

    def initialize(*_, **__):
        left.append(codes.get(timeout=10))

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    processes.connect("node1.invalid:1234", 2, 0, timeout=0)
    assert left == [2]
    (line,) = capsys.readouterr().err.splitlines()
    assert "do not all meet at node1.invalid:1234 within 0 s: this machine does not know" in line


def test_who_waits_long_says_for_whom(monkeypatch, capsys):
    monkeypatch.setattr(processes, "_SOON", 0.0)
    monkeypatch.setattr(processes, "reached", lambda place: "others are missing")
    said = []

    def initialize(*_, **__):
        until = time.monotonic() + 10
        while not said and time.monotonic() < until:
            said.extend(capsys.readouterr().err.splitlines())
        raise RuntimeError("UNKNOWN: Failed to start RPC server")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(distributed.global_state, "coordinator_address", "node1:1234")
    with pytest.raises(UserError, match=r"cannot listen at port 1234 of .* JAX_COORDINATOR_PORT"):
        processes.connect("node1:1234", 2, 0)
    assert said == ["process 0 waits for the others at node1:1234, up to 300 s: others are missing"]


def test_a_pod_waits_until_the_first_one_has_a_name(monkeypatch):
    answers = [RuntimeError("Retry failed with all attempts exhausted"), None]

    def initialize(*_, **__):
        if error := answers.pop(0):
            raise error

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    processes.connect()
    assert not answers
    answers = [RuntimeError("Retry failed")]
    with pytest.raises(RuntimeError, match="Retry failed"):
        processes._initialize(Peers(), -1)


def test_devices_that_cannot_be_used_are_told(monkeypatch):
    def count():
        raise RuntimeError("Unable to initialize backend 'cpu': [enforce fail at gloo/device.cc]")

    processes.check_devices()
    monkeypatch.setattr(jax, "device_count", count)
    monkeypatch.setattr(socket, "gethostname", lambda: "nobody.invalid")
    with pytest.raises(
        UserError, match=r"cannot be used: .* its own name nobody\.invalid, .*hosts"
    ):
        processes.check_devices()
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    with pytest.raises(UserError, match="cannot be used: Unable to initialize backend"):
        processes.check_devices()
    monkeypatch.setattr(jax, "device_count", lambda: 3 * jax.local_device_count())
    with pytest.raises(UserError, match=r"process 0 has .* must have the same number"):
        processes.check_devices()


def test_what_each_has_is_known_to_all(monkeypatch):
    assert processes.any_process(True)
    assert not processes.any_process(False)
    others = iter([np.array([2, 3]), np.array([4, 1, -1, 7, 1, 9])])  # their numbers, and they
    monkeypatch.setattr(processes, "from_all", lambda _: next(others))
    assert processes.allgather(np.array([4, 1])).tolist() == [1, 4, 7, 9]


def test_a_process_alone_asks_nobody():
    assert processes.is_first()
    assert processes.broadcast(lambda: [1, "a"]) == [1, "a"]
    np.testing.assert_array_equal(processes.from_all(np.arange(3)), np.arange(3))
    any_stops = processes.AnyProcess(data_mesh(), late=3)
    assert [any_stops(wanted) for wanted in (False, True)] == [False, True]
    assert processes.allgather(np.array([4, 1])).tolist() == [1, 4]
    assert processes.allgather(np.array([], int)).tolist() == []
    processes.listen()  # does nothing here
    processes.leave(3)  # nor this
    assert jax.process_count() == 1
