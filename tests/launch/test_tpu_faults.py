"""launch/tpu.sh when the cloud, the hosts or the terminal fail, and when others use a slice."""

import os
import signal
import sys
import zipfile

import pytest

from tests.launch.conftest import SLICE, WHAT
from tests.launch.test_tpu import lines

DESCRIBE = "compute tpus queued-resources describe"
SMALL = (*SLICE, *WHAT, "--type", "v5e-4")
FOREVER = ("--", "bash", "-c", 'trap "exit 3" TERM; echo ready; while :; do sleep 0.1; done')


def deleted(cloud):
    return any("delete" in call for call in cloud.calls())


@pytest.mark.parametrize("verb", ["create", "run"])
def test_a_cloud_that_does_not_answer_is_not_taken_for_one_without_the_slice(cloud, verb):
    cloud.run("create", *SMALL)
    command = ("--", "true") if verb == "run" else ()
    cloud.set(failing={DESCRIBE: ["UNAVAILABLE: 503"] * 3})
    _, err = cloud.run(verb, *SMALL, *command, status=1)
    assert lines(err) == ["could not ask whether there is a a: ERROR: (gcloud) UNAVAILABLE: 503"]
    assert "a" in cloud.state["requests"] and not deleted(cloud)
    cloud.set(failing={DESCRIBE: ["UNAVAILABLE: 503"] * 2})
    cloud.run("run", *SMALL, "--", "true")
    assert len(cloud.state["created"]) == 1


def test_what_somebody_else_created_meanwhile_is_not_deleted(cloud):
    cloud.run("create", *SMALL)
    cloud.set(failing={DESCRIBE: ["NOT_FOUND"] * 2})
    _, err = cloud.run("run", *SMALL, "--", "true", status=1)
    assert "ALREADY_EXISTS" in err and lines(err)[-1].startswith("could not ask for a")
    assert "a" in cloud.state["requests"] and not deleted(cloud)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_slice_is_deleted_though_nobody_reads_what_is_said(cloud, number, status):
    """As with `2>&1 | tee log` and Ctrl-C, or when the terminal is closed."""
    process = cloud.start("run", *SMALL, *FOREVER)
    assert process.stdout.readline() == "ready\n"
    process.stdout.close()
    process.stderr.close()
    os.killpg(process.pid, number)
    # The shell says itself what the signal ended, into the closed pipe: that may be first.
    assert process.wait(timeout=60) in (status, 128 + signal.SIGPIPE)
    assert cloud.state["requests"] == {} and cloud.running() == []


def test_signals_that_come_at_once_delete_the_slice(cloud):
    process = cloud.start("run", *SMALL, *FOREVER)
    assert process.stdout.readline() == "ready\n"
    for number in (signal.SIGSTOP, signal.SIGHUP, signal.SIGPIPE, signal.SIGTERM, signal.SIGCONT):
        process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode in (129, 141, 143)
    assert cloud.state["requests"] == {} and cloud.running() == []


def test_a_pipe_that_is_closed_while_printing_deletes_the_slice(cloud):
    program = "echo ready; for i in $(seq 600); do echo $i; sleep 0.1; done"
    process = cloud.start("run", *SMALL, "--", "bash", "-c", program)
    assert process.stdout.readline() == "ready\n"
    process.stdout.close()
    process.communicate(timeout=60)
    assert process.returncode == 141 and cloud.state["requests"] == {}


def test_an_agent_without_gclouds_key_is_not_used(cloud):
    cloud.environment["SSH_AUTH_SOCK"] = str(cloud.folder / "agent")
    cloud.run("create", *SLICE, *WHAT)


@pytest.mark.parametrize("verb", ["create", "run"])
def test_a_host_that_is_not_reached_at_once_is_tried_again(cloud, verb):
    lost = {f"compute tpus tpu-vm {word}": ["ssh: Connection reset"] for word in ("ssh", "scp")}
    cloud.set(failing=lost)
    cloud.run(verb, *SMALL, *(("--", "true") if verb == "run" else ()))
    assert len(cloud.state["created"]) == 1 and "a" in cloud.state["requests"]


def test_chatter_is_shown_only_when_something_fails(cloud):
    _, err = cloud.run("run", *SMALL, "--", "true")
    assert "Using ssh batch size" not in err
    cloud.set(failing={"compute tpus tpu-vm ssh": ["ssh: Connection reset"]})
    _, err = cloud.run("stop", *SLICE, status=1)
    assert "Connection reset" in err


def test_another_type_than_that_of_the_slice_is_refused(cloud):
    cloud.run("create", *SMALL)
    _, err = cloud.run("run", *SLICE, *WHAT, "--delete-after", "--", "true", status=1)
    assert lines(err) == ["--type: a exists already and is v5litepod-4, not v5litepod-16"]
    assert "a" in cloud.state["requests"]


@pytest.mark.parametrize("words", [("--max-restarts", "0"), ("--mount", "gs://none=/mnt/a:ro")])
def test_delete_after_deletes_a_slice_that_was_there_however_the_run_fails(cloud, words):
    """When restarts are used up, and when the hosts cannot be set up."""
    cloud.run("create", *SMALL)
    cloud.set(buckets=cloud.state["buckets"] | {"none": {}})
    command = ("--delete-after", "--", "bash", "-c", "exit 4")
    cloud.run("run", *SMALL, *words, *command, status=1)
    assert cloud.state["requests"] == {}


@pytest.mark.parametrize("words", [(), ("--container", "example.com/image:1")])
def test_delete_after_leaves_a_slice_that_runs_something_else(cloud, words):
    cloud.run("run", *SMALL, "--detach", *FOREVER)
    _, err = cloud.run("run", *SMALL, "--delete-after", *words, "--", "true", status=1)
    assert "a is kept, and costs money: its hosts may be running something else" in lines(err)
    assert "a" in cloud.state["requests"] and not deleted(cloud)


def test_status_says_what_is_left_of_a_slice_that_was_taken_away(cloud):
    cloud.run("create", *SMALL)
    cloud.preempt(grace=0.1)
    assert cloud.run("status", *SLICE)[0] == "request: SUSPENDED\na: PREEMPTED\n"


def test_slices_are_counted_by_asking(cloud):
    cloud.run("run", *SMALL, "--slices", "2", "--", "bash", "-c", "echo of $JAX_PROCESS_ID")
    out, _ = cloud.run("status", *SLICE)
    assert out.startswith("request: ACTIVE\na-0: READY\na-1: READY\n")
    assert out.count(": exited 0\n") == 2
    assert cloud.run("logs", *SLICE, "--slice", "1")[0] == "of 1\n"
    assert cloud.run("ssh", *SLICE, "--", "echo", "here")[0] == "here\n"
    _, err = cloud.run("logs", *SLICE, "--slice", "2", status=1)
    assert lines(err) == ["--slice: a has no slice 2"]
    cloud.run("stop", *SLICE)


def test_a_mount_that_comes_later_is_kept_for_the_next_run(cloud):
    cloud.run("create", *SMALL)
    mounted = cloud.folder / "mnt"
    cloud.run("run", *SMALL, "--mount", f"gs://runs={mounted}", "--", "true")
    settings = cloud.folder / "hosts/a-0/stylecrafter/settings"
    assert f"gs://runs={mounted}" in settings.read_text()


def test_a_folder_that_has_another_bucket_or_mode_is_refused(cloud):
    mounted = cloud.folder / "mnt"
    cloud.run("create", *SMALL, "--mount", f"gs://runs={mounted}")
    for other, there in (("gs://flat={}:ro", "flat (ro)"), ("gs://runs={}:ro", "runs (ro)")):
        words = ("--mount", other.format(mounted), "--", "true")
        _, err = cloud.run("run", *SMALL, *words, status=1)
        assert f"--mount: {mounted} is runs (rw) already, not {there}" in err


def test_nothing_is_left_beside_what_was_there(cloud):
    before = {path.name for path in cloud.folder.iterdir()}
    cloud.run("run", *SMALL, "--delete-after", "--", "true")
    after = {path.name for path in cloud.folder.iterdir()}
    assert after - before == {"calls.log", "hosts"}


def test_a_python_that_is_not_there_is_an_error(cloud):
    words = [word for word in SMALL if word not in ("--venv", sys.prefix)]
    _, err = cloud.run("create", *words, "--python", "nosuch", status=1)
    assert "--python: nosuch is no Python of 3.11 or later" in err


def write_wheel(path, text):
    """A wheel that prints `text` when it is run, and needs nothing."""
    info = "stylecrafter_jax-9.dist-info"
    files = {
        "stylecrafter_jax/__init__.py": "",
        "stylecrafter_jax/__main__.py": f"import sys; print({text!r}, sys.argv[1:], sys.prefix)",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: stylecrafter_jax\nVersion: 9\n"
        "Provides-Extra: tpu\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    "given", ["--venv", pytest.param("--python", marks=pytest.mark.slow)], ids=str
)
def test_a_rebuilt_wheel_of_the_same_version_replaces_the_old_one(cloud, tmp_path, given):
    """With the real pip, into an environment of the hosts or a new one."""
    wheel = tmp_path / "stylecrafter_jax-9-py3-none-any.whl"
    cloud.set(environment={"PIP_NO_INDEX": "1"})
    words = ["run", *SMALL, "--wheel", wheel, "--", "stylecrafter", "train"]
    prefix = sys.prefix
    if given == "--python":
        place = words.index("--venv")
        words[place : place + 2] = ["--python", sys.executable]
        prefix = cloud.folder / "hosts/a-0/stylecrafter/venv"
    for text in ("first", "second"):
        write_wheel(wheel, text)
        assert cloud.run(*words, timeout=120)[0] == f"{text} ['train'] {prefix}\n"
