"""How processes are found; what connected ones do is in `train/test_processes.py`."""

import jax
import pytest

from stylecrafter_jax import processes
from stylecrafter_jax.processes import Given, find_cluster, start

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
SLURM = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1"}


@pytest.fixture
def asked(monkeypatch):
    """What JAX's runtime is asked for, in place of connecting to anybody."""
    calls = []

    def initialize(*args, **options):
        calls.append((args, options.get("cluster_detection_method")))

    monkeypatch.setattr(processes.jax.distributed, "initialize", initialize)
    return calls


@pytest.mark.parametrize(
    ("env", "cluster"),
    [
        ({}, None),
        ({"JAX_PLATFORMS": "cpu"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "gketpu"),
        ({"TPU_WORKER_HOSTNAMES": "a"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "gketpu"),
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1"}, "gketpu"),
        (SLURM, "slurm"),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}, None),
    ],
)
def test_clusters_are_recognized_by_their_variables(env, cluster):
    assert find_cluster(Given(), {"JAX_PLATFORMS": "cpu", **env}) == cluster


def test_chips_of_a_tpu_ask_the_cloud_unless_the_run_is_on_cpus(monkeypatch):
    monkeypatch.setattr(processes, "_has_tpu", lambda: True)
    assert find_cluster(Given(), {}) == "gcetpu"
    assert find_cluster(Given(), {"JAX_PLATFORMS": "cpu"}) is None
    assert find_cluster(Given(), {"TPU_SKIP_MDS_QUERY": "1"}) is None


def test_what_is_given_goes_before_the_environment(asked):
    start(Given(index=2), {ADDRESS: "host:1", COUNT: "4", INDEX: "0", **SLURM})
    start(Given(count=1), {ADDRESS: "host:1", COUNT: "4", INDEX: "0"})
    start(Given(), {ADDRESS: "host:1", **SLURM})
    start(Given(), {"JAX_PLATFORMS": "cpu"})
    assert asked == [(("host:1", 4, 2), None), ((), "slurm")]


@pytest.mark.parametrize(
    ("given", "env", "message"),
    [
        (Given(), {COUNT: "2"}, "need a coordinator .* got None, 2 and None"),
        (Given(), {COUNT: "2", INDEX: "0"}, "need a coordinator"),
        (Given(), {COUNT: "two", INDEX: "0"}, "JAX_NUM_PROCESSES must be a number, got 'two'"),
        (Given(), {ADDRESS: "host", COUNT: "2", INDEX: "0"}, "must be host:port, got 'host'"),
        (Given(), {ADDRESS: "host:1", COUNT: "2", INDEX: "2"}, "index of 2 processes .* got 2"),
        (Given("host:1"), {}, "several processes need .* got host:1, None and None"),
    ],
)
def test_half_a_description_is_one_line(asked, given, env, message):
    with pytest.raises(ValueError, match=message) as error:
        start(given, env)
    assert "\n" not in str(error.value) and not asked


def test_a_cluster_that_does_not_answer_is_one_line(monkeypatch):
    def initialize(*args, **options):
        raise RuntimeError("DEADLINE_EXCEEDED: nobody\nis there")

    monkeypatch.setattr(processes.jax.distributed, "initialize", initialize)
    with pytest.raises(ValueError, match=r"cannot connect the processes \(given\): DEADLINE") as e:
        start(Given("host:1", 2, 1), {})
    assert "\n" not in str(e.value)


def test_alone_a_process_leads_and_agrees_with_itself():
    assert processes.leads() and not processes.several()
    assert processes.gathered({"a": 1}) == [{"a": 1}]
    assert processes.together(lambda: 3) == 3 and processes.by_leader(lambda: 4) == 4
    assert processes.told(lambda: [5]) == [5]
    processes.agree({"options": 1})


def test_an_error_says_whether_another_process_is_gone(monkeypatch):
    lost = (
        "UNAVAILABLE: Connection reset by peer",
        "Gloo AllReduce failed: Connection closed by peer [127.0.0.1]:5000",
        "DEADLINE_EXCEEDED: Barrier timed out",
    )
    own = (
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 5 bytes, of a peer",
        "INTERNAL: Mosaic failed to compile TPU kernel",
        "INVALID_ARGUMENT: shapes differ",
    )
    errors = {text: jax.errors.JaxRuntimeError(text) for text in (*lost, *own)}
    assert not any(map(processes.lost_another, errors.values()))  # there is no other one
    monkeypatch.setattr(processes, "several", lambda: True)
    assert {text for text, error in errors.items() if processes.lost_another(error)} == {*lost}
    assert not processes.lost_another(ValueError("connection"))
