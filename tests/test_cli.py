import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stylecrafter_jax import cli
from stylecrafter_jax.checkpoints.bundle import load_bundle, read_config
from stylecrafter_jax.config_json import to_dict
from stylecrafter_jax.models.networks import parameter_shapes

SCRIPT = Path(sys.executable).with_name("stylecrafter")


def ended(args, capsys):
    """Returns (status, standard error) of a command that argparse ends."""
    with pytest.raises(SystemExit) as caught:
        cli.main(args)
    return caught.value.code, capsys.readouterr()


@pytest.mark.parametrize(
    "args, message",
    [
        ([], "stylecrafter: error: the following arguments are required: COMMAND"),
        (["paint"], "stylecrafter: error: argument COMMAND: invalid choice: 'paint'"),
        (
            ["generate", "a", "--steps", "many"],
            "stylecrafter generate: error: argument --steps: invalid int value: 'many'",
        ),
        (
            ["generate", "a", "--stepz", "3"],
            "stylecrafter: error: unrecognized arguments: --stepz",
        ),
        (
            ["generate", "a", "--dtype", "float8"],
            "stylecrafter generate: error: argument --dtype: invalid choice: 'float8'",
        ),
        (
            ["convert", "import", "out"],
            "stylecrafter convert import: error: the following arguments are required: --model",
        ),
    ],
)
def test_a_wrong_argument_is_one_line_that_says_where_to_read_on(args, message, capsys):
    status, printed = ended(args, capsys)
    assert status == 2 and printed.out == ""
    assert printed.err.startswith(message) and printed.err.count("\n") == 1
    assert printed.err.rstrip().endswith("--help")


@pytest.mark.parametrize(
    "args", [[], ["generate"], ["convert"], ["convert", "import"], ["data"], ["inspect"], ["demo"]]
)
def test_every_command_has_help(args, capsys):
    status, printed = ended([*args, "--help"], capsys)
    assert status == 0 and printed.err == ""
    assert printed.out.startswith("usage: stylecrafter")


def test_the_help_of_generate_names_every_choice_of_sampler_and_format(capsys):
    from stylecrafter_jax.diffusion.samplers import SAMPLERS
    from stylecrafter_jax.jobs import IMAGE_FORMATS, VIDEO_FORMATS

    text = " ".join(ended(["generate", "--help"], capsys)[1].out.split())
    assert all(name in text for name in (*SAMPLERS, *VIDEO_FORMATS, *IMAGE_FORMATS))


def test_inspect_describes_a_bundle(capsys, small_bundle, tmp_path):
    assert cli.main(["inspect", str(small_bundle), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "bundle" and found["problems"] == [] and found["hashes_verified"]
    assert cli.main(["inspect", str(small_bundle), "--quick"]) == 0
    assert "native 24x16, 4 frames" in capsys.readouterr().out
    assert cli.main(["inspect", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1


def test_convert_writes_the_originals_files_and_reads_them_back(capsys, small_bundle, tmp_path):
    pytest.importorskip("torch", reason="PyTorch's files need PyTorch")
    assert cli.main(["convert", "export", str(small_bundle), str(tmp_path / "files")]) == 0
    written = [line.removeprefix("wrote ") for line in capsys.readouterr().out.splitlines()]
    named = {Path(path).name.split("_")[0].split(".")[0]: path for path in written}
    config = tmp_path / "model.json"
    config.write_text(json.dumps(to_dict(read_config(small_bundle))))
    out = tmp_path / "again"
    arguments = ["--adapter", named["adapter"], "--temporal", named["temporal"]]
    arguments += ["--open-clip", named["open"], "--config", str(config), "--quiet"]
    arguments += ["--model", named["model"]]
    assert cli.main(["convert", "import", str(out), *arguments]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == f"wrote {out}" and printed.err == ""
    _, before = load_bundle(small_bundle, expected=parameter_shapes)
    _, after = load_bundle(out, expected=parameter_shapes)
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
    assert cli.main(["convert", "import", str(out), *arguments]) == 1
    assert "already exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error, status, line",
    [
        (ValueError("two\nlines"), 1, "stylecrafter: error: two lines"),
        (
            OSError(28, "No space left", "f"),
            1,
            "stylecrafter: error: [Errno 28] No space left: 'f'",
        ),
        (KeyboardInterrupt(), 130, "stylecrafter: interrupted; finished results are kept"),
    ],
)
def test_what_a_command_raises_is_one_line(monkeypatch, capsys, error, status, line):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("stylecrafter_jax.commands.demo.run", fail)
    assert cli.main(["demo"]) == status
    assert capsys.readouterr() == ("", line + "\n")


def test_a_mistake_of_ours_is_no_mistake_of_the_users(monkeypatch):
    def fail(*args, **kwargs):
        raise KeyError("bug")

    monkeypatch.setattr("stylecrafter_jax.commands.demo.run", fail)
    with pytest.raises(KeyError):
        cli.main(["demo"])


def test_the_installed_command_ends_quietly_when_its_reader_has_gone(small_bundle):
    read, write = os.pipe()
    os.close(read)
    ran = subprocess.run(
        [SCRIPT, "inspect", small_bundle, "--quick"], stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    assert (ran.returncode, ran.stderr) == (1, b"")


@pytest.mark.slow
@pytest.mark.parametrize("steps", [2, 900], ids=["compiling", "sampling"])
def test_ctrl_c_ends_the_installed_command(small_bundle, style_files, tmp_path, steps):
    args = ["--style", style_files[0], "--bundle", small_bundle, "--out", tmp_path / "o"]
    ran = subprocess.Popen(
        [SCRIPT, "generate", "a cat", *args, "--steps", str(steps)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert ran.stderr is not None
    sign = "compiling" if steps == 2 else "1/"
    seen = ""
    while sign not in seen:
        seen += ran.stderr.read(1)
    began = time.perf_counter()
    ran.send_signal(2)
    out, err = ran.communicate(timeout=60)
    assert (ran.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "stylecrafter: interrupted; finished results are kept"
    assert "Traceback" not in err and time.perf_counter() - began < 20
    assert list((tmp_path / "o").iterdir()) == []
