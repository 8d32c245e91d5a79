import os
import signal
import threading
import time

import pytest

from stylecrafter_jax.commands import batches, interruptible
from stylecrafter_jax.commands.batches import write_result

LINE = "stylecrafter: interrupted; finished results are kept"


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def test_a_result_and_an_error_come_through():
    assert interruptible.interruptible(lambda stop: 3) == 3
    with pytest.raises(ValueError, match="no"):
        interruptible.interruptible(lambda stop: (_ for _ in ()).throw(ValueError("no")))


def test_ctrl_c_tells_the_function_and_waits_for_it():
    ended = []

    def work(stop):
        ctrl_c()
        stop.wait(10)
        ended.append(stop.is_set())

    with pytest.raises(KeyboardInterrupt):
        interruptible.interruptible(work)
    assert ended == [True]


def test_what_does_not_end_is_left_behind_and_not_waited_for_at_exit(monkeypatch):
    at_exit, release = [], threading.Event()
    monkeypatch.setattr(interruptible, "GRACE_SECONDS", 0.05)
    monkeypatch.setattr(interruptible.atexit, "register", at_exit.append)

    def compile_for_minutes(stop):
        ctrl_c()
        release.wait(10)

    began = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        interruptible.interruptible(compile_for_minutes)
    assert time.perf_counter() - began < 5 and len(at_exit) == 1
    release.set()


def test_ctrl_c_while_sampling_is_one_line_and_130(generate, monkeypatch, tmp_path, style_files):
    update = batches._StepBar.update

    def press(bar, step, total):
        update(bar, step, total)
        if step == 1:
            ctrl_c()
            time.sleep(0.2)  # the main thread hears of it meanwhile

    monkeypatch.setattr(batches._StepBar, "update", press)
    ran = generate("a cat", "--style", style_files[0], "--out", "o")
    assert ran == (130, [], [LINE])
    assert list((tmp_path / "o").iterdir()) == []
    monkeypatch.undo()


def test_ctrl_c_between_results_keeps_those_that_are_finished(
    generate, monkeypatch, tmp_path, style_files
):
    def write_and_press(*args, **kwargs):
        write_result(*args, **kwargs)
        ctrl_c()

    monkeypatch.setattr(batches, "write_result", write_and_press)
    args = ("a cat", "--style", style_files[0], "--out", "o", "--samples", 3)
    ran = generate(*args)
    assert (ran.status, ran.err) == (130, [LINE])
    names = sorted(p.name for p in (tmp_path / "o").iterdir())
    assert names == ["0000_0.mp4", "0000_0.mp4.json"]
    monkeypatch.setattr(batches, "write_result", write_result)
    again = generate(*args, quiet=False)
    assert again.status == 0 and again.err[0] == "1 of 3 results are already there"
    assert sorted(again.out) == [f"o/0000_{i}.mp4" for i in range(3)]
