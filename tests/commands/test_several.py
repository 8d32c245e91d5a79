"""`stylecrafter generate` in several real processes makes what one makes, and all end together."""

import json
import shutil
import signal
import time

import numpy as np
import pytest
from PIL import Image

from stylecrafter_jax import cli
from tests.limits import largest_file
from tests.several import finish, launch

COUNT = 5  # results; neither two nor four processes get as many each


@pytest.fixture
def listed(tmp_path, style_files):
    """A list of five, with one and two references, beside its style images."""
    for path in style_files:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    names = [path.name for path in style_files]
    styles = [names[0], names[1:], names[2], names[:2], names[1]]
    content = [{"prompt": f"entry {i}", "style_path": style} for i, style in enumerate(styles)]
    path = tmp_path / "list.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def arguments(listed, small_bundle, tmp_path):
    """Arguments that make the list's results as folders of pictures in `out`."""
    common = ["generate", "--list", listed, "--bundle", small_bundle, "--format", "frames"]
    return [*common, "--steps", 2, "--out", tmp_path / "out"]


def pixels(folder):
    """The frames of all results in a folder."""
    return np.stack(
        [
            np.stack([np.array(Image.open(p)) for p in sorted(folder.glob(f"{i:04d}/*.png"))])
            for i in range(COUNT)
        ]
    )


def paths(out):
    """What a process printed; on CPU, gloo prints lines of its own."""
    return [line for line in out.splitlines() if not line.startswith("[Gloo]")]


def assert_same(folder, other):
    """Programs of another batch or mesh add in another order: a level of 256, on CPU in float32."""
    apart = np.abs(pixels(folder).astype(int) - pixels(other))
    assert apart.max() <= 1
    assert np.abs(pixels(folder)[0].astype(int) - pixels(folder)[1]).max() > 1


def until(path, started, seconds=240):
    """Waits for a result; where it does not come, ends what was started."""
    end = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > end or any(process.poll() is not None for process in started):
            for process in started:
                process.kill()
            pytest.fail(f"{path} is not made: {[process.communicate() for process in started]}")
        time.sleep(0.05)


def alone(arguments, folder):
    """Makes the results in one process on one device."""
    (ended,) = finish(launch(1, [*arguments, "--out", folder], devices=1))
    assert ended.status == 0, ended.err


@pytest.mark.slow
def test_two_and_four_processes_make_what_one_makes(tmp_path, arguments):
    alone(arguments, tmp_path / "alone")
    for count, devices, mesh in ((2, 2, []), (4, 1, ["--mesh", "data=2,frames=2"])):
        out = tmp_path / f"of_{count}"
        ended = finish(launch(count, [*arguments, "--out", out, *mesh], devices=devices))
        assert [process.status for process in ended] == [0] * count, ended[0].err
        assert paths(ended[0].out) == [str(out / f"{i:04d}") for i in range(COUNT)]
        assert all(paths(process.out) == [] for process in ended[1:])
        assert not [line for process in ended[1:] for line in process.err.splitlines()]
        assert_same(out, tmp_path / "alone")


@pytest.mark.slow
def test_what_the_first_process_has_is_not_made_again(tmp_path, arguments):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    alone(arguments, tmp_path / "alone")
    for i in (0, 2):
        shutil.copytree(tmp_path / f"alone/{i:04d}", out / f"{i:04d}")
        shutil.copy(tmp_path / f"alone/{i:04d}.json", out / f"{i:04d}.json")
    ended = finish(launch(2, arguments, others=["--out", elsewhere]))
    assert [process.status for process in ended] == [0, 0], ended[0].err + ended[1].err
    assert "2 of 5 results are already there" in ended[0].err
    assert paths(ended[0].out) == [str(out / f"{i:04d}") for i in (0, 2, 1, 3, 4)]
    assert not elsewhere.exists(), "only the first process looks for results and writes them"
    made = {i: json.loads((out / f"{i:04d}.json").read_text())["batch"] for i in range(COUNT)}
    assert made == {0: 1, 2: 1, 1: 4, 3: 4, 4: 4}
    assert_same(out, tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("told", [0, 1])
def test_a_signal_to_one_ends_all_after_the_same_batch(tmp_path, arguments, told):
    out = tmp_path / "out"
    started = launch(2, [*arguments, "--steps", 100], devices=1)
    until(out / "0001", started)
    started[told].send_signal(signal.SIGTERM)
    ended = finish(started)
    assert [process.status for process in ended] == [3, 3], ended[0].err + ended[1].err
    made = paths(ended[0].out)
    assert len(made) in (2, 4) and sorted(map(str, out.glob("????"))) == made
    line = f"stopped after {len(made)} of 5 results; run the same again to go on"
    assert ended[0].err.splitlines()[-1] == line
    assert "ending after this batch" in ended[told].err
    again = finish(launch(2, [*arguments, "--steps", 100], devices=1))
    assert [process.status for process in again] == [0, 0]
    assert f"{len(made)} of 5 results are already there" in again[0].err


@pytest.mark.slow
def test_a_first_process_that_cannot_write_ends_all(tmp_path, arguments):
    with largest_file(64):
        started = launch(2, [*arguments, "--quiet"], devices=1)
    ended = finish(started)
    assert [process.status for process in ended] == [1, 1]
    line = f"cannot write {tmp_path / 'out/0000'}: File too large"
    assert ended[0].err == f"stylecrafter: error: {line}\n"
    assert ended[1].err == f"stylecrafter: error: process 0: {line}\n"
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_is_killed_does_not_leave_the_other_waiting(tmp_path, arguments, killed):
    long = [*arguments, "--steps", 100, "--quiet", "--lost-after", 10]
    started = launch(2, long, devices=1)
    until(tmp_path / "out/0000", started)
    started[killed].kill()
    assert finish(started, seconds=60)[1 - killed].status in (4, -signal.SIGABRT)


@pytest.mark.slow
def test_what_differs_between_hosts_is_one_line_on_all(tmp_path, arguments, listed):
    ended = finish(launch(2, [*arguments, "--quiet"], others=["--seed", 5], devices=1))
    line = "all processes must be asked for the same: process 1 has another set of options"
    for process in ended:
        assert process.status == 1
        assert process.err == f"stylecrafter: error: {line} than process 0\n"
    ended = finish(launch(2, [*arguments, "--mesh", "data=2"], devices=2))
    line = "--mesh data=2 has devices of 1 of 2 processes; all must take part, "
    line += "with the same number of devices"
    assert {(p.status, p.err) for p in ended} == {(1, f"stylecrafter: error: {line}\n")}
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_bad_image_on_one_host_is_one_line_on_all(tmp_path, small_bundle, style_files):
    """Without a model: it is found before one is loaded."""
    good, bad = style_files[0], tmp_path / "absent.png"
    common = ["generate", "a cat", "--bundle", small_bundle, "--out", tmp_path / "out", "--style"]
    ended = finish(launch(2, [*common, good], others=[bad], devices=1), seconds=60)
    line = f"style image: cannot read {bad}: No such file or directory"
    assert [process.status for process in ended] == [1, 1]
    assert ended[0].err == f"stylecrafter: error: process 1: {line}\n"
    assert ended[1].err == f"stylecrafter: error: {line}\n"
    assert not (tmp_path / "out").exists()


GIVEN = {"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_PROCESS_ID": "0", "JAX_NUM_PROCESSES": "2"}
SLURM = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}


@pytest.mark.parametrize(("env", "refused"), [(GIVEN, True), (SLURM, True), ({}, False)])
def test_evaluate_refuses_several_processes(monkeypatch, capsys, tmp_path, env, refused):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["evaluate", "--out", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert ("evaluate runs in one process, not in several" in line) == refused
    assert ("wanted --bundle" in line) != refused
