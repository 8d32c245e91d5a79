import json

import pytest

from stylecrafter_jax.train.metrics_log import SKIPPED, MetricsLog, read_metrics


def strict(constant):
    raise AssertionError(f"{constant} is not JSON")


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_lines_are_strict_json_whatever_the_loss(tmp_path, loss):
    log = MetricsLog(tmp_path)
    log.write(1, {"loss": loss, "grad_norm": 0.1})
    log.write_skipped(1, loss, [3, 4])
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
