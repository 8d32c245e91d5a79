import io
import re

import pytest

from stylecrafter_jax.train.console import Console, duration, progress_line

VALUES = {
    "loss": 0.12345,
    "seconds": 3.0,
    "speed/images": 2.5,
    "speed/data_wait": 0.031,
    "speed/tflops": 9.0,
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.6, "1 min 0 s"),
        (3600.0, "1 h 0 min"),
        (11520.0, "3 h 12 min"),
        (90000.0, "1 d 1 h"),
    ],
)
def test_durations_by_hand(seconds, text):
    assert duration(seconds) == text


def test_a_line_has_how_far_how_good_how_fast_and_how_long():
    assert progress_line(40, 1000, VALUES, chips=4) == (
        "step 40/1000, loss 0.1235, 10 images/s, 3% waiting for data, 48 min 0 s left"
    )
    assert progress_line(3, 9, {}) == "step 3/9"
    assert "left" not in progress_line(9, 9, VALUES)


def test_a_file_gets_a_line_a_minute_and_the_last(capsys):
    now, file = [0.0], io.StringIO()
    console = Console(300, show=True, file=file, clock=lambda: now[0])
    for step in range(1, 301):
        now[0] += 1.0
        console.update(step, VALUES if step % 10 == 0 else None)
    console.close()
    lines = file.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        f"step {step}/300" for step in (10, 70, 130, 190, 250, 300)
    ]
    assert "\r" not in file.getvalue() and capsys.readouterr() == ("", "")


def test_a_terminal_has_one_line_that_changes_in_place():
    file = Terminal()
    console = Console(3, show=True, file=file)
    for step in (1, 2, 3):
        console.update(step, VALUES)
    console.close()
    text = file.getvalue()
    assert text.count("\n") == 1 and text.endswith("\n")
    assert re.split(r"\r", text.strip())[-1].startswith("step 3/3, loss 0.1235")


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_quiet_says_nothing(kind):
    file = kind()
    console = Console(2, show=False, file=file)
    console.update(1, VALUES)
    console.update(2, VALUES)
    console.close()
    assert file.getvalue() == ""
