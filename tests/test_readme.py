import re
import shlex
from pathlib import Path

import pytest

from stylecrafter_jax.cli import build_parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def commands():
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.S)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("line", [c for c in commands() if c.startswith("stylecrafter")])
def test_every_command_of_the_readme_is_understood(line):
    _, *words = shlex.split(line, comments=True)
    assert build_parser().parse_args(words).command


def test_the_two_commands_are_targets_of_the_makefile():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.M))
    made = {shlex.split(c, comments=True)[1] for c in commands() if c.startswith("make")}
    assert made == {"demo", "test"} <= targets


def test_every_folder_and_file_the_readme_names_exists():
    named = re.findall(
        r"`((?:stylecrafter_jax|tests|docs|configs)[\w/.]*)`|\]\((docs/[\w/.]+)\)", README
    )
    paths = {first or second for first, second in named}
    assert paths and not [path for path in paths if not (ROOT / path).exists()]
