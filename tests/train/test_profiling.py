import jax.numpy as jnp
import pytest

from stylecrafter_jax.config import ConfigError
from stylecrafter_jax.train.profiling import Profiler, parse_span


@pytest.mark.parametrize("text", ["", "10", "10:", ":20", "0:3", "20:10", "a:b", "1:2:3", "-1:4"])
def test_a_wrong_span_is_one_line(text):
    with pytest.raises(ConfigError) as caught:
        parse_span(text)
    assert str(caught.value) == f"--profile: wanted two steps such as 10:20, got {text!r}"


def run(profiler, steps):
    """Returns after which steps files were there."""
    seen = []
    for step in range(1, steps + 1):
        with profiler.step():
            value = jnp.arange(10.0) * step
        profiler.end(value)
        if profiler._folder.exists():
            seen.append(step)
    profiler.close()
    return seen


def test_the_named_steps_are_profiled_and_written_at_their_end(tmp_path, capsys):
    assert run(Profiler(tmp_path / "profile", parse_span("2:3")), 4)[-2:] == [3, 4]
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    content = trace.read_bytes()
    assert b"train" in content
    assert capsys.readouterr().err == ""


def test_a_run_that_ends_within_keeps_what_there_is_and_one_that_ends_before_says_so(
    tmp_path, capsys
):
    run(Profiler(tmp_path / "one", parse_span("2:30")), 3)
    assert list((tmp_path / "one").rglob("*.xplane.pb"))
    assert capsys.readouterr().err == ""
    run(Profiler(tmp_path / "other", parse_span("10:20")), 3)
    assert not (tmp_path / "other").exists()
    assert capsys.readouterr().err == (
        "no profile: it begins at step 10 from the start of this process, which did 3\n"
    )


def test_without_a_span_there_is_nothing(tmp_path, capsys):
    assert run(Profiler(tmp_path / "profile", None), 3) == []
    assert capsys.readouterr().err == ""
