"""A run that is killed again and again, also amid a save, ends as one that never was."""

import random
import signal
import time

import pytest

from stylecrafter_jax.train.runs import CHECKPOINTS
from tests.faults.soak import newest
from tests.several import finish, launch, write_config
from tests.train.conftest import assert_same_run, changed, history, torn

KILLS = 20
SECONDS = 300


@pytest.mark.slow
def test_twenty_kills_change_nothing(experiment, tmp_path):
    """Half of them when a save has begun, the others some random steps after the start."""
    # Enough steps that twenty parts do not reach the end.
    some = changed(experiment, train__steps=1300, train__log_every=5, train__save_every=4)
    config = write_config(some, tmp_path / "config.py")
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    (ended,) = finish(launch(1, ["train", config, "--out", straight, "--quiet"], TOY="1"), 600)
    assert ended.status == 0, ended.err
    rng, amid, newest_saved = random.Random(0), 0, []
    for number in range(KILLS):
        begun = newest(killed)
        (process,) = launch(1, ["train", config, "--out", killed, "--quiet"], TOY="1")
        wanted, end = begun + rng.randrange(6, 60), time.monotonic() + SECONDS
        while not newest(killed) >= wanted or (number % 2 and not torn(killed)):
            assert process.poll() is None and time.monotonic() < end, process.communicate()[1]
            time.sleep(0.001)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        amid += bool(torn(killed))
        whole = [int(p.name) for p in (killed / CHECKPOINTS).iterdir() if p.name.isdecimal()]
        newest_saved.append(max(whole, default=0))
    assert amid >= KILLS // 4  # the others were complete before the signal came
    (ended,) = finish(launch(1, ["train", config, "--out", killed, "--quiet"], TOY="1"), 600)
    assert ended.status == 0, ended.err
    assert not torn(killed), "what the killed saves left is gone"
    assert [event for event, _ in history(killed)] == ["started", *KILLS * ["resumed"], "finished"]
    assert [step for event, step in history(killed) if event == "resumed"] == newest_saved
    assert_same_run(killed, straight, some)
