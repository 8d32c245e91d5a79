"""The folder of a run that has everything, written by the parts that write a run."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from stylecrafter_jax.checkpoints.store import Store
from stylecrafter_jax.data.ledger import Fault, Ledger
from stylecrafter_jax.train.events import History, note
from stylecrafter_jax.train.experiment import DataConfig, Experiment, SampleConfig, TrainConfig
from stylecrafter_jax.train.metrics_log import SKIPPED, SPIKES, MetricsLog
from stylecrafter_jax.train.runs import claim

SCRIPT = "<script>alert('x')</script>"


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """Sixty steps, one of them skipped, resumed once; foreign texts are hostile."""
    run = tmp_path_factory.mktemp("runs") / 'my "run" & more'
    experiment = Experiment(
        stage="stage1",
        bundle="nowhere",
        data=DataConfig(images=f"pictures{SCRIPT}"),
        train=TrainConfig(steps=60, log_every=2),
        samples=SampleConfig(every=20, prompts=(f"a cat {SCRIPT}",)),
    )
    claim(run, experiment, "0123")
    history = History(run, 0)
    history.begin({"data": 2, "fsdp": 1})
    note(run, "lost_process", 31, reason=f"gone {SCRIPT}")
    History(run, 30).begin({})
    history.step = 60
    history.end(True)
    log = MetricsLog(run)
    for step in range(2, 61, 2):
        values = {"loss": 1.0 / step, "grad_norm": 10.0**-step, "seconds": 0.5, "skipped": 0}
        values |= {"loss_t/250-499": 3.25} if step % 4 else {"loss_t/0-249": 7.125}
        log.write(step, {**values, f"own<{SCRIPT}": 0.5, "scale/middle_block.1": 1.5})
    batch = {"source": SCRIPT, "index": [8, 13], "records": ["8.jpg", SCRIPT]}
    log.note(SKIPPED, {"step": 33, "loss": float("nan"), **batch})
    log.note(SPIKES, {"step": 44, "loss": 9.5, "median": 0.5, "deviations": 11.0, **batch})
    log.close()
    ledger = Ledger(0.5)
    ledger.add(SCRIPT, 5, [Fault(3, f"id {SCRIPT}", f"no picture {SCRIPT}")])
    ledger.write(run / "refused.jsonl")
    store = Store(run / "checkpoints", keep_last=1)
    for step, loss in ((20, 0.125), (40, 0.75)):
        store.save(step, {"x": jnp.ones(2)}, {}, loss)
    store.close()
    (run / "samples").mkdir()
    for step in range(20, 21 * 20, 20):
        pixels = np.full((40, 2400, 3), step % 250, np.uint8)
        Image.fromarray(pixels).save(run / "samples" / f"step_{step:06d}.png")
    (run / "samples" / "step_000040.png").write_bytes(b"half a picture")
    with (run / "events.jsonl").open("a") as file:
        file.write(json.dumps({"time": "no time", "event": SCRIPT, "step": 60}) + '\n{"torn')
    return run
