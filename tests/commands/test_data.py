import argparse
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from stylecrafter_jax.commands.data import add_parser
from stylecrafter_jax.data.records import DataError
from stylecrafter_jax.data.sources import open_source
from stylecrafter_jax.world.drawing import draw
from stylecrafter_jax.world.source import open_world
from tests.data.conftest import picture


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(5):
        (folder / f"{i}.jpg").write_bytes(picture(40, 50, seed=i))
        (folder / f"{i}.txt").write_text(f"a painting of thing {i}")
    (folder / "3.jpg").write_bytes(b"")
    return folder


def run(*argv) -> int:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["data", *map(str, argv)])
    return args.run(args)


def test_inspect_prints_counts_and_writes_a_sheet(photos, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    assert run("inspect", photos, "--sheet", out, "--rows", 3) == 0
    text = capsys.readouterr().out
    assert "photos: 5 records, 5 looked at" in text
    assert "4 pictures, 0 videos, 1 refused" in text
    assert "refused: 3.jpg: the file has zero bytes" in text
    page = np.asarray(Image.open(out))
    assert page.shape[0] == 3 * 166
    assert run("inspect", photos, "--json", "--sample", 2) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["records"], found["images"]) == (5, 2)


def test_inspect_of_nothing_usable_fails(photos):
    for file in photos.glob("*.jpg"):
        file.write_bytes(b"")
    assert run("inspect", photos) == 1


def test_inspect_shows_the_demo_world(tmp_path, capsys):
    out = tmp_path / "sheet.png"
    assert run("inspect", "world:styled:50", "--sheet", out, "--rows", 2, "--sample", 3) == 0
    assert "world:styled:50:0: 50 scenes of 1 frames" in capsys.readouterr().out
    page = np.asarray(Image.open(out))
    source = open_world("world:styled:50")
    tile = Image.fromarray(draw(source[1].scene)[0]).resize((160, 160), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(page[166:326, 166:326], tile)
    # A world that has fewer scenes than the sheet has rows.
    assert run("inspect", "world:styled:1", "--sheet", out) == 0
    assert np.asarray(Image.open(out)).shape[0] == 166
    capsys.readouterr()
    assert run("inspect", "world:clips", "--json", "--sample", 2) == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 8
    with pytest.raises(DataError, match="there is no kind of world"):
        run("inspect", "world:stiled")


def test_pack_says_what_was_refused_and_why(photos, tmp_path, capsys):
    assert run("pack", photos, tmp_path / "out", "--shard-size", 2, "--quiet") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "refused 3.jpg: the file has zero bytes"
    assert lines[1].startswith("wrote 4 records (") and lines[1].endswith("refused 1")
    assert len(open_source(tmp_path / "out")) == 4
    assert run("inspect", tmp_path / "out") == 0


def test_mistakes_reach_the_command_line_as_one_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no pictures or videos"):
        run("inspect", tmp_path / "empty")
    with pytest.raises(DataError, match="there is no file or folder"):
        run("pack", tmp_path / "none", tmp_path / "out")


def test_the_parser_needs_none_of_the_readers():
    code = (
        "import sys, stylecrafter_jax.commands.data\n"
        "assert not {'grain', 'av', 'jax', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
