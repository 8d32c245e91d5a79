"""A real training run on two hosts of a slice that is taken away in the middle."""

import numpy as np
import pytest

from stylecrafter_jax.train.metrics_log import read_metrics
from stylecrafter_jax.train.runs import merged
from tests.flags import FLAGS
from tests.launch.conftest import SLICE, WHAT
from tests.several import write_config
from tests.train.conftest import changed, saved_steps

STEPS = 60


@pytest.mark.slow
def test_a_preempted_run_ends_in_the_weights_of_an_undisturbed_one(cloud, experiment, tmp_path):
    cloud.set(environment={"XLA_FLAGS": FLAGS.format(2)})
    wanted = {"data__image_batch": 4, "train__steps": STEPS, "train__save_every": 1000}
    wanted["mesh"] = {"data": None, "fsdp": 2}
    config = write_config(changed(experiment, **wanted), tmp_path / "config.py")
    mounted = cloud.folder / "mnt"
    words = ("run", *SLICE, *WHAT, "--spot", "--mount", f"gs://runs={mounted}", "--delete-after")
    train = ("--", "stylecrafter", "train", config, "--quiet", "--out")
    out, err = cloud.run(*words, *train, mounted / "straight", timeout=300)
    assert out.rstrip().endswith(str(mounted / "straight")), err

    process = cloud.start(*words, *train, mounted / "disturbed")
    folder, straight = (cloud.folder / "buckets/runs" / name for name in ("disturbed", "straight"))
    cloud.until(lambda: any(row["step"] >= 3 for row in read_metrics(folder)), 120)
    cloud.preempt(grace=60)
    (stopped,) = saved_steps(folder)
    assert 3 <= stopped < STEPS, "the run was not stopped in its middle"
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "restart 1 of 10" in err and len(cloud.state["created"]) == 3
    assert cloud.state["requests"] == {} and cloud.running() == []

    rows = [[(row["step"], row["loss"]) for row in read_metrics(run)] for run in (folder, straight)]
    assert rows[0] == rows[1] and len(rows[0]) == STEPS
    weights = merged(straight, "last")[1]
    for name, value in merged(folder, "last")[1].items():
        np.testing.assert_array_equal(value, weights[name], err_msg=name)
