import datetime
import json
import os
import signal
import subprocess
import sys
from importlib import metadata

import jax
import pytest

from stylecrafter_jax.train.events import environment, note, read_events
from tests.limits import largest_file


def test_events_are_kept_in_order_with_their_time(tmp_path):
    begun = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    note(tmp_path, "started", 0, devices=4, versions={"jax": "0.7"})
    note(tmp_path, "save_failed", 20, reason="no space\nleft é")
    first, second = read_events(tmp_path)
    assert (first["event"], first["step"], first["versions"]) == ("started", 0, {"jax": "0.7"})
    assert second["reason"] == "no space\nleft é"
    times = [datetime.datetime.fromisoformat(row["time"]) for row in (first, second)]
    assert begun <= times[0] <= times[1] <= datetime.datetime.now(datetime.UTC)


def test_a_run_without_events_has_none(tmp_path):
    assert read_events(tmp_path) == []


@pytest.mark.parametrize("torn", ['{"time": "2', '{"a": 1}', "17", "\x00\x00", '{"a": "\udcff'])
def test_a_line_cut_short_hides_no_other(tmp_path, torn):
    note(tmp_path, "started", 0)
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(torn.encode("utf-8", errors="surrogateescape"))
    assert [row["event"] for row in read_events(tmp_path)] == ["started"]
    note(tmp_path, "resumed", 3)
    found = [row["event"] for row in read_events(tmp_path) if "event" in row]
    assert found == ["started", "resumed"]


def test_an_event_is_on_disk_when_the_process_is_killed_next(tmp_path):
    code = (
        "import os, pathlib, signal, sys\n"
        "from stylecrafter_jax.train.events import note\n"
        "note(pathlib.Path(sys.argv[1]), 'stopped', 7, loss=float('nan'))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    assert subprocess.run([sys.executable, "-c", code, tmp_path], env=env).returncode == (
        -signal.SIGKILL
    )
    (row,) = read_events(tmp_path)
    assert (row["event"], row["step"], row["loss"]) == ("stopped", 7, None)


def test_a_full_disk_is_an_error(tmp_path):
    with largest_file(10), pytest.raises(OSError, match="File too large"):
        note(tmp_path, "started", 0)


def test_environment_is_that_of_this_process_and_plain_json():
    found = json.loads(json.dumps(environment()))
    assert found["devices"] == len(jax.devices()) and found["processes"] == 1
    assert found["device_kind"] == "cpu"
    assert found["versions"]["jax"] == metadata.version("jax")
