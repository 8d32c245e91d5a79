"""launch/gke/run.sh: the manifest against what JobSet and GKE say, and who gets it."""

import subprocess

import pytest

from tests.launch.conftest import ROOT

yaml = pytest.importorskip("yaml")

SCRIPT = "gke/run.sh"
RUN = ("--name", "a", "--image", "registry/image:1")
PLACE = ("--project", "p", "--zone", "us-west4", "--cluster", "c")
COMMAND = ["bash", "-c", "echo \"$$ a & b\"\n\t'c' \\ ${name}", "${image}"]


def rendered(*words, command=COMMAND):
    script = ROOT / "launch" / SCRIPT
    options = ["run", *RUN, *words, "--render", "--", *command]
    return yaml.safe_load(subprocess.check_output([script, *options], text=True))


def pod_of(manifest):
    return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]


def as_kubernetes_reads(word):
    """In a command, $$ is a $; a single one stays unless a variable's name stands in brackets."""
    return word.replace("$$", "$")


def test_the_manifest_is_a_jobset_that_starts_again_but_not_after_errors():
    manifest = rendered("--type", "v5e-16", "--max-restarts", "7")
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert manifest["metadata"]["name"] == "a"
    policy = manifest["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    assert policy["rules"] == [
        {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]
    (job,) = manifest["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["backoffLimit"] == 0
    (rule,) = spec["podFailurePolicy"]["rules"]
    (container,) = spec["template"]["spec"]["containers"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["containerName"] == container["name"]
    final = set(rule["onExitCodes"]["values"])
    assert {1, 2} <= final and not final & {0, 3, 4, 134, 137, 143}
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # pod failure policies need it
    assert [as_kubernetes_reads(word) for word in container["command"]] == COMMAND
    assert container["image"] == "registry/image:1"


# Type, GKE's names and the nodes of a slice, from "Plan TPUs in GKE".
TYPES = [
    ("v5e-08", "tpu-v5-lite-podslice", "2x4", 2, 4),
    ("v5e-1", "tpu-v5-lite-podslice", "1x1", 1, 1),
    ("v5e-4", "tpu-v5-lite-podslice", "2x2", 1, 4),
    ("v5e-16", "tpu-v5-lite-podslice", "4x4", 4, 4),
    ("v5litepod-256", "tpu-v5-lite-podslice", "16x16", 64, 4),
    ("v5p-8", "tpu-v5p-slice", "2x2x1", 1, 4),
    ("v5p-32", "tpu-v5p-slice", "2x2x4", 4, 4),
    ("v6e-16", "tpu-v6e-slice", "4x4", 4, 4),
    ("v4-16", "tpu-v4-podslice", "2x2x2", 2, 4),
]


@pytest.mark.parametrize(("type_", "accelerator", "topology", "hosts", "chips"), TYPES)
def test_a_slice_has_its_nodes(type_, accelerator, topology, hosts, chips):
    manifest = rendered("--type", type_, "--slices", "2")
    (job,) = manifest["spec"]["replicatedJobs"]
    assert job["replicas"] == 2
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] == hosts
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topology,
    }
    resources = pod["containers"][0]["resources"]
    assert resources["requests"] == resources["limits"] == {"google.com/tpu": chips}


def test_buckets_and_spot_nodes():
    words = ("--spot", "--mount", "gs://runs=/mnt/runs", "--mount", "gs://data=/mnt/data:ro")
    pod = pod_of(rendered("--type", "v5e-16", *words, "--service-account", "trainer"))
    assert pod["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    spec = pod["spec"]
    assert spec["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert spec["serviceAccountName"] == "trainer"
    mounts = spec["containers"][0]["volumeMounts"]
    assert [(m["mountPath"], m["readOnly"]) for m in mounts] == [
        ("/mnt/runs", False),
        ("/mnt/data", True),
    ]
    assert [m["name"] for m in mounts] == [v["name"] for v in spec["volumes"]]
    assert {v["csi"]["driver"] for v in spec["volumes"]} == {"gcsfuse.csi.storage.gke.io"}
    buckets = [v["csi"]["volumeAttributes"]["bucketName"] for v in spec["volumes"]]
    assert buckets == ["runs", "data"]
    (number,) = pod_of(rendered("--type", "v5e-16", "--mount", "gs://1234=/mnt"))["spec"]["volumes"]
    assert number["csi"]["volumeAttributes"]["bucketName"] == "1234"
    plain = pod_of(rendered("--type", "v5e-16"))
    assert plain["spec"]["volumes"] == [] and not plain["metadata"]["annotations"]


def test_run_applies_the_manifest_once_and_delete_removes_it(cloud):
    words = ("run", *PLACE, *RUN, "--type", "v5e-16", "--", *COMMAND)
    _, err = cloud.run(*words, script=SCRIPT)
    assert err == "run.sh: a is started; logs --follow prints what it says\n"
    applied = cloud.folder / "jobsets/a"
    assert yaml.safe_load(applied.read_text()) == rendered("--type", "v5e-16")
    assert all(
        line.startswith("--context gke_p_us-west4_c ")
        for line in (cloud.folder / "kubectl.log").read_text().splitlines()
    )
    _, err = cloud.run(*words, script=SCRIPT, status=1)
    assert err == "run.sh: the run a exists already; delete removes it\n"
    assert cloud.run("logs", *PLACE, "--name", "a", script=SCRIPT)[0] == "output\n"
    assert cloud.run("status", *PLACE, "--name", "a", script=SCRIPT)[0].endswith("pods\n")
    cloud.run("delete", *PLACE, "--name", "a", script=SCRIPT)
    assert not applied.exists()


def test_xpk_gets_the_same(cloud):
    words = ("run", *PLACE, *RUN, "--type", "v5e-16", "--slices", "2", "--xpk", "--", *COMMAND)
    out, _ = cloud.run(*words, script=SCRIPT)
    said, _, command = out.partition("--command=")
    assert said.split() == [
        *("--project=p", "--zone=us-west4", "--cluster=c", "--workload=a"),
        *("--tpu-type=v5litepod-16", "--num-slices=2", "--docker-image=registry/image:1"),
        "--max-restarts=10",
    ]
    assert "--spot\n" in cloud.run("run", "--spot", *words[1:], script=SCRIPT)[0]
    read = subprocess.check_output(["bash", "-c", f"printf '%s\\0' {command}"], text=True)
    assert read.split("\0")[:-1] == COMMAND


@pytest.mark.parametrize("words", [("--xpk",), ()])
def test_a_zone_may_be_one_of_a_regional_cluster(cloud, words):
    cloud.set(clusters={"c": {"status": "RUNNING", "location": "us-west4"}})
    place = [*PLACE[:3], "us-west4-a", *PLACE[4:]]
    out, _ = cloud.run("run", *place, *RUN, "--type", "v5e-16", *words, "--", "ls", script=SCRIPT)
    assert ("--zone=us-west4-a" in out) == bool(words)
    log = (cloud.folder / "kubectl.log").read_text() if not words else ""
    assert log.count("gke_p_us-west4_c") == len(log.splitlines())
    *_, credentials = cloud.calls() if words else [c for c in cloud.calls() if "us-west4" in c]
    assert credentials[2] == "get-credentials" and "us-west4" in credentials


@pytest.mark.parametrize("verb", ["logs", "status", "delete"])
def test_every_command_makes_the_cluster_known(cloud, verb):
    cloud.run("run", *PLACE, *RUN, "--type", "v5e-16", "--", "ls", script=SCRIPT)
    before = len(cloud.calls())
    cloud.run(verb, *PLACE, "--name", "a", script=SCRIPT)
    assert any("get-credentials" in call for call in cloud.calls()[before:])


def test_a_dry_run_needs_no_tools(cloud, tools):
    words = ("run", *PLACE, *RUN, "--type", "v5e-16", "--dry-run", "--", *COMMAND)
    out, _ = cloud.run(*words, script=SCRIPT)
    cloud.environment["PATH"] = str(tools)
    assert cloud.run(*words, script=SCRIPT)[0] == out


def test_a_dry_run_prints_what_would_be_done_and_does_nothing(cloud):
    words = ("run", *PLACE, *RUN, "--type", "v5e-16", "--dry-run", "--", *COMMAND)
    out, _ = cloud.run(*words, script=SCRIPT)
    assert cloud.calls() == [] and not (cloud.folder / "kubectl.log").exists()
    subprocess.run(["bash", "-euc", out], env=cloud.environment, check=True, capture_output=True)
    applied = yaml.safe_load((cloud.folder / "jobsets/a").read_text())
    assert applied == rendered("--type", "v5e-16")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((*PLACE[:-1], "d"), "there is no cluster d in us-west4 of p that this account may see"),
        (
            (*PLACE, "--mount", "gs://none=/mnt/a"),
            "--mount: there is no bucket gs://none that this account may see",
        ),
    ],
)
def test_a_mistake_about_the_cloud_is_one_line_and_nothing_is_applied(cloud, words, line):
    out, err = cloud.run(
        "run", *words, *RUN, "--type", "v5e-16", "--", "ls", script=SCRIPT, status=1
    )
    assert err == f"run.sh: {line}\n" and not (cloud.folder / "jobsets").exists()


def test_a_cluster_without_jobset_is_one_line(cloud):
    (cloud.folder / "no_jobset").touch()
    _, err = cloud.run("run", *PLACE, *RUN, "--type", "v5e-16", "--", "ls", script=SCRIPT, status=1)
    assert err.splitlines() == [
        "run.sh: the cluster c has no JobSet; see https://jobset.sigs.k8s.io/docs/installation"
    ]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("run", *PLACE), "--name is missing"),
        (("run", *PLACE, *RUN, "--", "ls"), "--type is missing"),
        (("run", *PLACE, *RUN, "--type", "v5e-16"), "run needs -- COMMAND..."),
        (
            ("run", *PLACE, *RUN, "--type", "v5e-17", "--", "ls"),
            "--type must be a slice of v4, v5e, v5p or v6e such as v5e-16, got v5e-17",
        ),
        (("run", *RUN, "--type", "v5e-16", "--", "ls"), "--project is missing"),
        *(
            (
                ("run", *PLACE, *RUN, "--type", "v5e-16", "--xpk", *words, "--", "ls"),
                f"{words[0]} is not for --xpk",
            )
            for words in (("--mount", "gs://runs=/a"), ("--service-account", "a"), ("--render",))
        ),
        (("status", *PLACE, "--name", "a", "--", "ls"), "status takes no command"),
    ],
)
def test_a_mistake_in_the_command_line_is_one_line_and_2(cloud, words, line):
    out, err = cloud.run(*words, script=SCRIPT, status=2)
    assert (out, err) == ("", f"run.sh: {line} (--help lists the options)\n")
    assert cloud.calls() == []
