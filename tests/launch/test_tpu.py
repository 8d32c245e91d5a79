"""launch/tpu.sh against the stand-in for gcloud."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.launch.conftest import EMPTY, ROOT, SLICE, WHAT

COUNT = """
for i in 1 2 3 4; do
    [ -e "$1/$i" ] && continue
    sleep 0.3
    if [ "$JAX_PROCESS_ID" = 0 ]; then echo "step $i"; touch "$1/$i"; fi
done
"""  # a run in four steps that goes on where it was, as training does


def lines(err):
    return [line.removeprefix("tpu.sh: ") for line in err.splitlines()]


def test_create_sets_up_every_host_and_delete_leaves_nothing(cloud):
    out, err = cloud.run(
        "create", *SLICE, *WHAT, "--spot", "--mount", f"gs://runs={cloud.folder}/mnt"
    )
    assert out == "" and lines(err)[-1] == "a is ready"
    (made,) = cloud.state["created"]
    assert made["accelerator-type"] == "v5litepod-16" and made["spot"] is True
    assert made["runtime-version"] == "v2-alpha-tpuv5-lite"
    for worker in (0, 1):
        code = cloud.folder / f"hosts/a-{worker}/stylecrafter/src"
        assert (code / "stylecrafter_jax/cli.py").is_file()
    out, _ = cloud.run("status", *SLICE)
    assert out.startswith("request: ACTIVE\na: READY\n") and out.count(": none\n") == 2
    cloud.run("delete", *SLICE)
    assert cloud.state["requests"] == cloud.state["nodes"] == {}
    assert list((cloud.folder / "hosts").iterdir()) == []
    _, err = cloud.run("status", *SLICE, status=1)
    assert lines(err) == ["there is no a in us-west4-a of p"]


def test_run_makes_what_is_missing_and_prints_the_first_hosts_output(cloud):
    mounted = cloud.folder / "mnt"
    words = ["--mount", f"gs://runs={mounted}", "--delete-after"]
    program = (
        'echo "out of $JAX_PROCESS_ID of $JAX_NUM_PROCESSES: $1"; echo "$PWD" >"$2/$JAX_PROCESS_ID"'
    )
    command = ["bash", "-c", program, "-", "a 'b'  c", mounted]
    out, _ = cloud.run("run", *SLICE, *WHAT, *words, "--", *command)
    assert out == "out of 0 of 2: a 'b'  c\n"
    assert mounted.resolve() == cloud.folder / "buckets/runs"
    hosts = [cloud.folder / f"hosts/a-{i}/stylecrafter/src" for i in (0, 1)]
    assert [(mounted / str(i)).read_text().strip() for i in (0, 1)] == list(map(str, hosts))
    assert cloud.state["requests"] == {}


def test_a_preempted_run_is_created_set_up_and_run_again(cloud):
    runs = cloud.folder / "buckets/runs"
    process = cloud.start("run", *SLICE, *WHAT, "--spot", "--", "bash", "-c", COUNT, "-", runs)
    cloud.until((runs / "2").exists)
    cloud.preempt(grace=0.5)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "ended with preempted; restart 1 of 10" in lines(err)
    assert (
        len(cloud.state["created"]) == 2 and cloud.state["created"][0] == cloud.state["created"][1]
    )
    assert set(out.split("\n")) >= {"step 3", "step 4"}
    assert out.count("step 1") <= 1  # nothing is done twice
    assert cloud.state["requests"]["a"]["state"] == {"state": "ACTIVE"}  # kept: nothing failed
    assert cloud.running() == []


def test_what_saved_or_lost_a_process_is_run_again_on_the_same_hosts(cloud):
    program = 'for i in 3 4 137; do [ -e "$1$i" ] || { touch "$1$i"; exit $i; }; done; echo end'
    words = ("--type", "v5e-4", "--", "bash", "-c", program, "-", cloud.folder / "ended_with_")
    out, err = cloud.run("run", *SLICE, *WHAT, *words)
    assert out == "end\n" and len(cloud.state["created"]) == 1
    assert sum("scp" in call for call in cloud.calls()) == 1  # the hosts have the code
    said = [line for line in lines(err) if "restart" in line]
    assert said == [f"ended with {n}; restart {i} of 10" for i, n in ((1, 3), (2, 4), (3, 137))]


def test_restarts_are_limited_and_then_nothing_is_left(cloud):
    command = ("--max-restarts", "1", "--type", "v5e-4", "--", "bash", "-c", "exit 4")
    _, err = cloud.run("run", *SLICE, *WHAT, *command, status=1)
    assert "ended with 4; 1 restarts are used up (--max-restarts)" in lines(err)
    assert cloud.state["requests"] == {}


def test_an_error_on_any_host_ends_the_run_and_leaves_nothing(cloud):
    program = '[ "$JAX_PROCESS_ID" = 1 ] || exit 4; echo "error: no such file"; exit 2'
    _, err = cloud.run("run", *SLICE, *WHAT, "--", "bash", "-c", program, status=2)
    assert "the command ended with 2" in lines(err)
    assert "error: no such file" in lines(err)
    assert cloud.state["requests"] == {} and len(cloud.state["created"]) == 1


@pytest.mark.slow
def test_a_failed_run_is_kept_if_asked_and_what_was_there_before_is_kept(cloud):
    words = (*SLICE, *WHAT, "--type", "v5e-4")
    _, err = cloud.run("run", *words, "--keep-on-failure", "--", "false", status=1)
    assert lines(err)[-1] == "a is kept, and costs money; launch/tpu.sh delete removes it"
    cloud.run("run", *words, "--", "false", status=1)
    assert "a" in cloud.state["requests"]
    cloud.run("run", *words, "--delete-after", "--", "false", status=1)
    assert cloud.state["requests"] == {}


def test_run_again_follows_what_is_running_and_refuses_anything_else(cloud):
    words = (*SLICE, *WHAT, "--type", "v5e-4")
    wait = (
        "bash",
        "-c",
        'until [ -e "$1" ]; do sleep 0.1; done; echo end',
        "-",
        cloud.folder / "go",
    )
    _, err = cloud.run("run", *words, "--detach", "--", *wait)
    assert lines(err)[-1] == "started; run again to follow it"
    _, err = cloud.run("run", *words, "--", "true", status=1)
    assert "is running another command: bash -c" in err and "a" in cloud.state["requests"]
    assert "running\n" in cloud.run("status", *SLICE)[0]
    process = cloud.start("run", *words, "--", *wait)
    (cloud.folder / "go").touch()
    assert process.communicate(timeout=60)[0] == "end\n" and process.returncode == 0
    assert cloud.run("logs", *SLICE) == ("end\n", "")
    assert cloud.run("ssh", *SLICE, "--", "cat", "stylecrafter/run/log")[0] == "end\n"


def test_stop_ends_the_run_with_what_the_command_ends_with(cloud):
    program = 'trap "echo saved; exit 3" TERM; echo ready; while :; do sleep 0.1; done'
    process = cloud.start("run", *SLICE, *WHAT, "--", "bash", "-c", program)
    log = cloud.folder / "hosts/a-1/stylecrafter/run/log"
    cloud.until(lambda: log.exists() and log.read_text() == "ready\n")
    cloud.run("stop", *SLICE)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (3, "ready\nsaved\n"), err
    assert lines(err)[-1] == "stopped as asked; run again to go on"


def test_ctrl_c_lets_the_command_save_and_deletes_what_was_created(cloud):
    saved = cloud.folder / "saved"
    program = 'trap "touch $1; exit 3" TERM; echo ready; while :; do sleep 0.1; done'
    process = cloud.start(
        *("run", *SLICE, *WHAT, "--type", "v5e-4", "--", "bash", "-c", program, "-", saved)
    )
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert saved.exists() and cloud.state["requests"] == {} and cloud.running() == []


def test_ctrl_c_while_waiting_deletes_the_request(cloud):
    cloud.set(never=True)
    process = cloud.start("create", *SLICE, *WHAT)
    cloud.until(lambda: "a" in cloud.state["requests"])
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130 and cloud.state["requests"] == {}


def test_a_slice_that_never_comes_is_given_up(cloud):
    cloud.set(never=True)
    _, err = cloud.run("create", *SLICE, *WHAT, "--timeout", "1", status=1)
    assert "a is still WAITING_FOR_RESOURCES after 1 s (--timeout)" in lines(err)
    assert cloud.state["requests"] == {}
    assert cloud.state["created"][0]["valid-until-duration"] == "1s"


def test_hosts_that_cannot_be_set_up_are_deleted(cloud):
    words = (*SLICE, *WHAT, "--venv", "/nowhere")
    _, err = cloud.run("create", *words, status=1)
    assert "there is no /nowhere/bin/python" in err and cloud.state["requests"] == {}
    cloud.run("create", *words, "--keep-on-failure", status=1)
    assert "a" in cloud.state["requests"]


BEFORE = {  # nothing is created, and one line says why
    "account": ({"accounts": []}, (), "gcloud is not logged in; run gcloud auth login"),
    "project": ({}, ("--project", "q"), "there is no project q that this account may see"),
    "zone": (
        {},
        ("--zone", "us-west4-z"),
        "--zone us-west4-z is not among the zones with TPUs: europe-west4-b us-west4-a ",
    ),
    "type": (
        {},
        ("--type", "v5e-256"),
        "--type v5litepod-256 is not among the types in us-west4-a: v5litepod-16 v5litepod-4 ",
    ),
    "runtime": (
        {},
        ("--runtime", "old"),
        "--runtime old is not among the versions in us-west4-a: v2-alpha-tpuv5-lite ",
    ),
    "bucket": (
        {},
        ("--mount", "gs://none=/mnt/a"),
        "--mount: there is no bucket gs://none that this account may see",
    ),
    "flat bucket": (
        {},
        ("--mount", "gs://flat=/mnt/a"),
        "--mount: gs://flat has no hierarchical namespace, so that checkpoints could not be renamed"
        " whole; create one with --enable-hierarchical-namespace, or mount it :ro",
    ),
    "there already": (
        {"requests": {"a": {"state": {"state": "ACTIVE"}, "nodes": [], "waits": []}}},
        (),
        "a exists already and is ACTIVE; run uses it, delete removes it",
    ),
}


@pytest.mark.parametrize("case", BEFORE)
def test_a_mistake_about_the_cloud_is_one_line_before_anything_is_created(cloud, case):
    values, words, line = BEFORE[case]
    cloud.set(**values)
    assert cloud.run("create", *SLICE, *WHAT, *words, status=1) == ("", f"tpu.sh: {line}\n")
    assert not any("create" in call for call in cloud.calls())


def test_a_refused_request_is_an_error_and_nothing_is_left(cloud):
    cloud.set(refuse="quota")
    _, err = cloud.run("create", *SLICE, *WHAT, status=1)
    assert "RESOURCE_EXHAUSTED: quota" in err
    assert "could not ask for a: see gcloud's message" in lines(err)


USAGE = [
    (("create", "--project", "p", "--zone", "z"), "--name is missing"),
    (("create", *SLICE), "--type is missing"),
    (("create", *SLICE, "--type", "v9-8"), "--type must be of v4, v5e, v5p or v6e, or come with"),
    (("create", *SLICE, *WHAT, "--name", "A_b"), "--name must be up to 40 of a-z, 0-9 and -"),
    (("create", *SLICE, *WHAT, "--spot", "--reserved"), "--spot and --reserved exclude each other"),
    (("create", *SLICE, *WHAT, "--mount", "runs"), "--mount must be gs://BUCKET=/FOLDER or"),
    (("create", *SLICE, *WHAT, "--timeout", "1h"), "--timeout must be a whole number, got 1h"),
    (("create", *SLICE, *WHAT, "--wheel", "no.whl"), "--wheel: there is no file no.whl"),
    (("create", *SLICE, *WHAT, "--slices", "0"), "--slices must be 1 or more, got 0"),
    (("create", *SLICE, *WHAT, "--poll", "often"), "--poll must be seconds, got often"),
    (("logs", *SLICE, "--worker", "one"), "--worker must be a number or all, got one"),
    (("create", *SLICE, *WHAT, "--colour", "red"), "there is no option --colour"),
    (("create", *SLICE, *WHAT, "--zone"), "--zone needs a value"),
    (("create", *SLICE, *WHAT, "--", "ls"), "create takes no command"),
    (("run", *SLICE, *WHAT), "run needs -- COMMAND..."),
    (
        ("run", *SLICE, *WHAT, "--detach", "--delete-after", "--", "ls"),
        "--detach and --delete-after exclude each other",
    ),
    (("make", *SLICE), "there is no command make"),
]


@pytest.mark.parametrize(("words", "line"), USAGE)
def test_a_mistake_in_the_command_line_is_one_line_and_2(cloud, words, line):
    out, err = cloud.run(*words, status=2)
    assert out == "" and len(err.splitlines()) == 1 and lines(err)[0].startswith(line)
    assert cloud.calls() == []


def test_without_gcloud_it_says_so_but_a_dry_run_needs_none(cloud, tools):
    cloud.environment["PATH"] = str(tools)
    _, err = cloud.run("status", *SLICE, status=1)
    assert lines(err) == ["gcloud is not on PATH; the Google Cloud SDK has it"]
    out, _ = cloud.run("run", *SLICE, *WHAT, "--dry-run", "--", "true")
    assert "gcloud compute tpus queued-resources create a " in out


def test_a_dry_run_prints_what_a_run_does_and_does_nothing(cloud):
    command = ["bash", "-c", "echo 'a  b'"]
    words = (*SLICE, *WHAT, "--spot", "--delete-after", "--mount", f"gs://runs={cloud.folder}/mnt")
    out, _ = cloud.run("run", *words, "--dry-run", "--", *command)
    assert cloud.calls() == [] and cloud.state == EMPTY
    said = [line for line in out.splitlines() if line.startswith("gcloud ")]
    read = subprocess.run(
        ["bash", "-c", "\n".join(re.sub("^gcloud", "show", line) for line in said)],
        **{"env": {**os.environ, "BASH_FUNC_show%%": "() { printf '%s\\0' \"$@\" $'\\n'; }"}},
        **{"capture_output": True, "text": True, "check": True},
    ).stdout
    planned = [call.split("\0")[:-1] for call in read.split("\n\0") if call]
    cloud.run("run", *words, "--", *command)

    def calls(found):  # every call has a folder of its own for what it sends
        return [tuple(re.sub(r"stylecrafter-\w{6}/", "", word) for word in call) for call in found]

    planned, done = calls(planned), calls(cloud.calls())
    assert dict.fromkeys(planned).keys() <= dict.fromkeys(done).keys()
    done = [c for c in done if "describe" not in c]
    assert list(dict.fromkeys(c for c in planned if "describe" not in c)) == list(
        dict.fromkeys(done)
    )


def test_hosts_get_the_commit_and_files_that_differ_from_it_are_refused(cloud, tmp_path):
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "launch", tree / "launch")
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        (tree / name).touch()
    for folder in ("stylecrafter_jax", "configs"):
        (tree / folder).mkdir()
        (tree / folder / "file").write_text("committed")
    author = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    for words in (["init", "-q"], ["add", "-A"], [*author, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=tree, check=True)
    script = tree / "launch/tpu.sh"
    words = ("create", *SLICE, "--type", "v5e-4", "--poll", "0.1", "--venv", sys.prefix)
    (tree / "configs/mine.py").touch()
    _, err = cloud.run(*words, script=script, status=1)
    assert re.fullmatch(
        r"tpu.sh: 1 files differ from commit \w{12}, which hosts would get: commit them, or say"
        r" --allow-dirty to go without them\n",
        err,
    )
    assert cloud.calls() == []
    (tree / "stylecrafter_jax/file").write_text("changed")
    cloud.run(*words, "--allow-dirty", script=script)
    code = cloud.folder / "hosts/a-0/stylecrafter/src"
    assert (code / "stylecrafter_jax/file").read_text() == "committed"
    assert not (code / "configs/mine.py").exists()
    shutil.rmtree(tree / ".git")
    _, err = cloud.run(*words, script=script, status=2)
    assert lines(err)[0].startswith("this folder is no git repository: say --wheel or --container")


def test_slices_are_nodes_of_one_request(cloud):
    words = (*SLICE, *WHAT, "--type", "v5e-4", "--slices", "2")
    program = 'echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES" >"$1/$JAX_PROCESS_ID"'
    cloud.run("run", *words, "--", "bash", "-c", program, "-", cloud.folder / "buckets/runs")
    assert cloud.state["created"][0]["node-count"] == "2"
    assert set(cloud.state["nodes"]) == {"a-0", "a-1"}
    said = [(cloud.folder / f"buckets/runs/{i}").read_text() for i in (0, 1)]
    assert said == ["0 of 2\n", "1 of 2\n"]


@pytest.mark.slow
def test_a_container_runs_the_command_and_hears_stop(cloud):
    words = ["--project", "p", "--zone", "us-west4-a", "--name", "a", "--type", "v5e-4"]
    words += ["--poll", "0.1", "--container", "example.com/image:1"]
    words += ["--mount", f"gs://runs={cloud.folder}/mnt"]
    program = 'trap "exit 3" TERM; echo ready; while :; do sleep 0.1; done'
    process = cloud.start("run", *words, "--", "bash", "-c", program)
    assert process.stdout.readline() == "ready\n"
    cloud.run("stop", *SLICE)
    process.communicate(timeout=60)
    assert process.returncode == 3
    calls = (cloud.folder / "hosts/a-0/docker_calls").read_text().splitlines()
    assert calls[0] == "pull --quiet example.com/image:1"
    assert "--stop-timeout 120" in calls[2]
    assert f"-v {cloud.folder}/mnt:{cloud.folder}/mnt example.com/image:1 bash -c" in calls[2]
    words[words.index("example.com/image:1")] = "example.com/missing"
    cloud.run("run", *words, "--", "true", status=1)
