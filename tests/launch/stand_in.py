"""A stand-in for gcloud: a slice's hosts are folders here, and what they run are processes.

Its state is a folder, `$STAND_IN_CLOUD`, which `Cloud` in conftest.py makes. It is strict:
commands, flags and names of fields are those of gcloud 528.0.0's own reference
(data/cli/gcloud_completions.py of the SDK, and the messages of the TPU API), and anything else is
an error, so that a launcher's mistake is one here too. `WIDE` are the gcloud-wide flags.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(os.environ["STAND_IN_CLOUD"])
HOST_BIN = Path(__file__).parent / "host_bin"
WIDE = {"--project": 1, "--quiet": 0, "--format": 1}
LIST = {"--filter": 1, "--limit": 1, "--page-size": 1, "--sort-by": 1}
SSH = {"--force-key-file-overwrite": 0, "--internal-ip": 0, "--plain": 0, "--ssh-key-file": 1}
SSH |= {"--ssh-key-expiration": 1, "--ssh-key-expire-after": 1, "--strict-host-key-checking": 1}
SSH |= {"--dry-run": 0, "--worker": 1, "--zone": 1}
CREATE = dict.fromkeys(
    "--accelerator-type --data-disk --description --labels --metadata --metadata-from-file"
    " --network --node-count --node-id --node-prefix --range --runtime-version --scopes"
    " --service-account"
    " --subnetwork --tags --topology --type --valid-after-duration --valid-after-time"
    " --valid-until-duration --valid-until-time --zone --reservation-host-folder"
    " --reservation-host-organization --reservation-host-project".split(),
    1,
)
CREATE |= dict.fromkeys(
    "--async --guaranteed --internal-ips --reserved --shielded-secure-boot --spot".split(), 0
)
FLAGS = {  # command -> flag -> number of values
    "auth list": LIST | {"--filter-account": 1},
    "projects describe": {},
    "compute tpus locations list": LIST,
    "compute tpus accelerator-types list": LIST | {"--zone": 1},
    "compute tpus versions list": LIST | {"--zone": 1},
    "compute tpus queued-resources create": CREATE,
    "compute tpus queued-resources describe": {"--zone": 1},
    "compute tpus queued-resources delete": {"--async": 0, "--force": 0, "--zone": 1},
    "compute tpus tpu-vm describe": {"--zone": 1},
    "compute tpus tpu-vm list": LIST | {"--zone": 1},
    "compute tpus tpu-vm ssh": SSH | {"--command": 1, "--ssh-flag": 1, "--output-directory": 1},
    "compute tpus tpu-vm scp": SSH | {"--scp-flag": 1, "--recurse": 0, "--compress": 0},
    "storage buckets describe": {"--raw": 0, "--additional-headers": 1},
    "container clusters describe": {"--location": 1, "--region": 1, "--zone": 1},
    "container clusters get-credentials": {
        **{"--location": 1, "--region": 1, "--zone": 1},
        **{"--internal-ip": 0, "--dns-endpoint": 0},
    },
}


FLAGS |= {  # what the stand-in knows, but does not do: docs/tpu.md has them
    "auth login": {"--brief": 0},
    "projects create": {"--name": 1, "--organization": 1, "--folder": 1, "--set-as-default": 0},
    "billing accounts list": LIST,
    "billing projects link": {"--billing-account": 1},
    "services enable": {"--async": 0},
    "compute tpus queued-resources list": LIST | {"--zone": 1},
    "storage buckets create": {
        **{"--location": 1, "--default-storage-class": 1},
        **{"--uniform-bucket-level-access": 0, "--enable-hierarchical-namespace": 0},
    },
    "storage buckets add-iam-policy-binding": {"--member": 1, "--role": 1, "--condition": 1},
    "storage rsync": {"--recursive": 0, "--dry-run": 0},
    "storage cat": {"--range": 1},
    "storage rm": {"--recursive": 0},
}


def error(text, status=1):
    print(f"ERROR: (gcloud) {text}", file=sys.stderr)
    sys.exit(status)


def parse(words):
    """Returns the command, its positional arguments, and its flags without the dashes."""
    command = next((c for c in FLAGS if words[: len(c.split())] == c.split()), None)
    if command is None:
        error(f"Invalid choice: {' '.join(words)}", 2)
    rest, places, flags = words[len(command.split()) :], [], {}
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            places.append(word)
            continue
        flag, equals, value = word.partition("=")
        takes = (FLAGS[command] | WIDE).get(flag)
        if takes is None or (equals and not takes) or (takes and not equals and not rest):
            error(f"unrecognized arguments or missing value: {word}", 2)
        flags[flag[2:]] = (value if equals else rest.pop(0)) if takes else True
    return command, places, flags


def read():
    return json.loads((ROOT / "cloud.json").read_text())


def write(state):
    part = ROOT / f"cloud.json.{os.getpid()}"
    part.write_text(json.dumps(state, indent=1))
    part.replace(ROOT / "cloud.json")


def show(resource, flags):
    """Prints one field, as --format value(FIELD) does."""
    field = re.fullmatch(r"value\(([\w.\[\]]+)\)", flags.get("format", ""))
    if not field:
        error(f"the launchers ask for single fields, got --format {flags.get('format')}", 2)
    for name in re.findall(r"\w+", field[1]):
        if resource:
            resource = resource[int(name)] if name.isdigit() else resource.get(name, "")
    print(resource)


def show_all(values, field, flags):
    if flags.get("format") != f"value({field})":
        error(f"the field here is {field}", 2)
    print("\n".join(values))


def in_place(state, flags, zoned=True):
    """Project and zone must be there, as the cloud's errors say."""
    if flags.get("project") not in state["projects"]:
        error("PERMISSION_DENIED: project", 1)
    if zoned and flags.get("zone") not in state["zones"]:
        error("INVALID_ARGUMENT: zone", 1)


def named(state, kind, name):
    if name not in state[kind]:
        error(f"NOT_FOUND: {kind} {name}", 1)
    return state[kind][name]


def create(state, name, flags):
    node_names = [flags["node-id"]] if "node-id" in flags else None
    if ("node-id" in flags) == ("node-count" in flags) or "runtime-version" not in flags:
        error("one of --node-id, --node-count and a --runtime-version are needed", 2)
    if node_names is None:
        count, prefix = int(flags["node-count"]), flags.get("node-prefix", name)
        if count < 2:
            error("Node count must be greater than 1", 2)
        node_names = [f"{prefix}-{i}" for i in range(count)]
    if flags.get("accelerator-type") not in state["zones"][flags["zone"]]["types"]:
        error("INVALID_ARGUMENT: accelerator type")
    if not re.fullmatch(r"\d+s", flags.get("valid-until-duration", "1s")):
        error("Failed to parse duration", 2)
    if name in state["requests"]:
        error("ALREADY_EXISTS")
    if state["refuse"]:
        error(f"RESOURCE_EXHAUSTED: {state['refuse']}")
    waits = ["WAITING_FOR_RESOURCES", "PROVISIONING"][: state["waits"]]
    state["requests"][name] = {"state": {"state": "ACTIVE"}, "nodes": node_names, "waits": waits}
    spec = [{"node": {"acceleratorType": flags["accelerator-type"]}}]
    state["requests"][name]["tpu"] = {"nodeSpec": spec}
    if state["never"]:
        state["requests"][name]["waits"] = ["WAITING_FOR_RESOURCES"] * 10_000
    state["created"].append({"name": name, **flags})
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    hosts = state["zones"][flags["zone"]]["types"][flags["accelerator-type"]]
    for number, node in enumerate(node_names):
        state["nodes"][node] = {"state": "READY", "port": port, "hosts": hosts, "slice": number}
        state["nodes"][node]["processes"] = hosts * len(node_names)
        for worker in range(hosts):
            (ROOT / "hosts" / f"{node}-{worker}").mkdir(parents=True)


def host_processes(node):
    """Returns the processes that the node's hosts run, found by a variable of their environment."""
    mark, found = f"STAND_IN_HOST={ROOT}/hosts/{node}-".encode(), []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if mark in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:  # it ended, or is not ours
                continue
    return found


def halt(node, grace):
    """SIGTERM for all that runs on a node, and after `grace` seconds SIGKILL."""
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
        for pid in host_processes(node):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass
        until = time.monotonic() + seconds
        while host_processes(node) and time.monotonic() < until:
            time.sleep(0.05)


def preempt(name, grace):
    """What the cloud does of itself: the hosts go down, and then it says so."""
    nodes = read()["requests"][name]["nodes"]
    for node in nodes:
        halt(node, grace)
    state = read()
    for node in nodes:
        state["nodes"][node]["state"] = "PREEMPTED"
    state["requests"][name]["state"]["state"] = "SUSPENDED"
    write(state)


def delete(state, name, flags):
    request = named(state, "requests", name)
    if not flags.get("force"):
        error("FAILED_PRECONDITION: it has nodes; --force deletes them")
    for node in request["nodes"]:
        halt(node, 1.0)
        for worker in range(state["nodes"].pop(node)["hosts"]):
            shutil.rmtree(ROOT / "hosts" / f"{node}-{worker}")
    del state["requests"][name]


def workers(node, flag):
    if flag == "all":
        return range(node["hosts"])
    if not flag.isdigit() or int(flag) >= node["hosts"]:
        error(f"worker index {flag} is larger than the valid worker indexes", 2)
    return [int(flag)]


def reachable(state, name, flags):
    """Returns the folders of the workers asked for."""
    node = named(state, "nodes", name)
    if node["state"] != "READY":
        error(f"TPU is {node['state']}; ssh: connect: Connection timed out", 255)
    return [(ROOT / "hosts" / f"{name}-{w}", w) for w in workers(node, flags.get("worker", "0"))]


def host_environment(node, home, worker):
    """What a login finds: nothing of the caller's environment but the way to Python."""
    path = [str(HOST_BIN), str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"]
    environment = {
        "HOME": str(home),
        "PATH": os.pathsep.join(path),
        "STAND_IN_HOST": f"{home}-",
        "STAND_IN_CLOUD": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    if node["processes"] > 1:
        environment["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{node['port']}"
        environment["JAX_NUM_PROCESSES"] = str(node["processes"])
        environment["JAX_PROCESS_ID"] = str(node["slice"] * node["hosts"] + worker)
    return environment | read()["environment"]


def ssh(state, name, flags):
    """Runs the command on all workers at once; like ssh, waits for whoever holds its output."""
    if "command" not in flags:
        error("the stand-in has no terminal", 2)
    print("Using ssh batch size of 1. Attempting to SSH into 1 nodes.", file=sys.stderr)
    running = []
    for home, worker in reachable(state, name, flags):
        environment = host_environment(state["nodes"][name], home, worker)
        running.append(
            subprocess.Popen(
                ["bash", "-c", flags["command"]],
                **{"cwd": home, "env": environment, "start_new_session": True},
                **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True},
            )
        )
    for process in running:
        sys.stdout.write(process.communicate()[0])
    sys.exit(max((p.returncode % 256 for p in running), default=0))


def scp(state, places, flags):
    *sources, target = places
    name, colon, folder = target.partition(":")
    if not colon or not sources:
        error("scp takes files and NODE:FOLDER", 2)
    homes = reachable(state, name, flags)
    if len(homes) > 1 and "SSH_AUTH_SOCK" in os.environ:
        error("SSH Key is not present in the SSH agent.")
    for home, _ in homes:
        for source in sources:
            shutil.copy(source, home / folder)


def main(words):
    with (ROOT / "calls.log").open("a") as log:
        log.write(json.dumps(words) + "\n")
    command, places, flags = parse(words)
    state = read()
    if state["failing"].get(command):
        message = state["failing"][command].pop(0)
        write(state)
        error(message)
    if command == "auth list":
        return show_all(state["accounts"], "account", flags)
    if command == "projects describe":
        return show(named(state, "projects", places[0]), flags)
    if command == "storage buckets describe":
        return show(named(state, "buckets", places[0].removeprefix("gs://")), flags)
    if command.startswith("container clusters"):
        in_place(state, flags, zoned=False)
        cluster = named(state, "clusters", places[0])
        if flags["location"] != cluster.get("location", flags["location"]):
            error("NOT_FOUND: it is elsewhere")
        return show(cluster, flags) if command.endswith("describe") else None
    if command == "compute tpus locations list":
        in_place(state, flags, zoned=False)
        return show_all(state["zones"], "locationId", flags)
    in_place(state, flags)
    zone = state["zones"][flags["zone"]]
    match command.removeprefix("compute tpus "):
        case "accelerator-types list":
            return show_all(zone["types"], "type", flags)
        case "versions list":
            return show_all(zone["versions"], "version", flags)
        case "queued-resources create":
            create(state, places[0], flags)
        case "queued-resources describe":
            request = named(state, "requests", places[0])
            show(
                {"state": {"state": request["waits"].pop(0)}} if request["waits"] else request,
                flags,
            )
        case "queued-resources delete":
            delete(state, places[0], flags)
        case "tpu-vm describe":
            return show(named(state, "nodes", places[0]), flags)
        case "tpu-vm list":
            name = flags["filter"].removeprefix("queuedResource~/").removesuffix("$")
            nodes = state["requests"].get(name, {"nodes": []})["nodes"]
            return show_all(nodes, "name.basename()", flags)
        case "tpu-vm ssh":
            return ssh(state, places[0], flags)
        case "tpu-vm scp":
            return scp(state, places, flags)
    return write(state)


if __name__ == "__main__":
    main(sys.argv[1:])
