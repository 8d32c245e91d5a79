import json
import struct

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from stylecrafter_jax.train.metrics_log import SKIPPED, MetricsLog, read_metrics
from tests.limits import largest_file


def strict(constant):
    raise AssertionError(f"{constant} is not JSON")


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_lines_are_strict_json_whatever_the_loss(tmp_path, loss):
    log = MetricsLog(tmp_path)
    log.write(1, {"loss": loss, "grad_norm": 0.1})
    log.note(SKIPPED, {"step": 1, "loss": loss, "index": [3, 4]})
    log.close()
    rows = [
        json.loads(line, parse_constant=strict)
        for name in ("metrics.jsonl", SKIPPED)
        for line in (tmp_path / name).read_text().splitlines()
    ]
    assert rows == [
        {"step": 1, "loss": None, "grad_norm": 0.1},
        {"step": 1, "loss": None, "index": [3, 4]},
    ]


def test_floats_keep_full_precision_and_later_steps_are_dropped_on_resume(tmp_path):
    log = MetricsLog(tmp_path)
    for step in (1, 2, 3):
        log.write(step, {"loss": step / 3.0})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # cut short by a crash
    MetricsLog(tmp_path, step=2).close()
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1 / 3.0}, {"step": 2, "loss": 2 / 3.0}]


def events(folder):
    """The events of the only file in a folder; a record is length, checksum, bytes, checksum."""
    (path,) = folder.iterdir()
    left, found = path.read_bytes(), []
    while left:
        (length,) = struct.unpack("<Q", left[:8])
        found.append(event_pb2.Event.FromString(left[12 : 12 + length]))
        left = left[16 + length :]
    return found


def test_tensorboard_has_every_value_as_soon_as_it_is_written(tmp_path):
    log = MetricsLog(tmp_path, step=4)
    log.write(5, {"loss": 0.5, "seconds": 2.0})
    log.write_image(6, "samples", np.full((2, 3, 3), 7, np.uint8))
    version, start, loss, seconds, image = events(tmp_path / "tensorboard")
    log.close()
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (5, event_pb2.SessionLog.START)
    for event, name, value in ((loss, "loss", 0.5), (seconds, "seconds", 2.0)):
        (entry,) = event.summary.value
        assert (event.step, entry.tag, entry.simple_value) == (5, name, value)
    (entry,) = image.summary.value
    assert (image.step, entry.tag) == (6, "samples")
    assert (entry.image.height, entry.image.width) == (2, 3)


@pytest.mark.parametrize(("size", "name"), [(300, "metrics.jsonl"), (1200, "tensorboard")])
def test_a_full_disk_is_named_at_once_and_closing_is_no_second_error(tmp_path, size, name):
    log = MetricsLog(tmp_path)
    metrics = {"x" * (size // 10): 0.5} if name == "tensorboard" else {"x" * size: 0.5}
    with largest_file(size), pytest.raises(OSError, match=f"File too large.*{name}"):
        for step in range(1, 100):
            log.write(step, metrics)
            # Lines are dropped where the other file is to fill up first.
            (tmp_path / "metrics.jsonl").write_text("")
    log.close()
