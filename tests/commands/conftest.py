"""The command line run in this process, on the small model that all tests share."""

from typing import NamedTuple

import pytest

from stylecrafter_jax import cli
from stylecrafter_jax.generate import StyleCrafter


class Ran(NamedTuple):
    """How a command ended: its status, and the lines it printed."""

    status: int
    out: list[str]
    err: list[str]


@pytest.fixture
def run(capfd, monkeypatch, tmp_path):
    """Arguments -> `Ran`, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        capfd.readouterr()
        status = cli.main([str(arg) for arg in args])
        out, err = capfd.readouterr()
        return Ran(status, out.splitlines(), err.splitlines())

    return run


@pytest.fixture
def generate(run, monkeypatch, small_bundle, small_model):
    """Arguments of `generate` -> `Ran`: two steps, quiet, the bundle loaded once."""
    monkeypatch.setattr(StyleCrafter, "load", lambda *args, **settings: small_model)

    def generate(*args, quiet=True):
        common = ["--bundle", small_bundle, "--steps", 2, *["--quiet"] * quiet]
        return run("generate", *args, *common)

    return generate
