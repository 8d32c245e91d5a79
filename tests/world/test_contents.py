import io
import re
import zipfile
from importlib import resources

import numpy as np
import pytest
from PIL import Image

from stylecrafter_jax.world.contents import CONTENTS, PICTURES, SETS, load_drawing, manifest

FOLDER = resources.files("stylecrafter_jax.world")


def test_notice_names_source_and_licence_of_every_set():
    notice = FOLDER.joinpath("NOTICE").read_text(encoding="utf-8")
    rows = {
        row[0]: row for row in re.findall(r"^\| (\S+) \| (.+) \| (.+) \| (.+) \|$", notice, re.M)
    }
    described = manifest()["sets"]
    assert set(described) == set(SETS)
    for name, entry in described.items():
        _, package, licence, author = rows[name]
        assert package == f"{entry['package']} {entry['version']}"
        assert licence == entry["licence"]
        assert author.split()[0].strip(",") == entry["author"].split()[0]
    assert "Changes made" in notice


def test_pack_is_small_and_holds_every_drawing():
    packed = FOLDER.joinpath(PICTURES).read_bytes()
    assert len(packed) < 600_000
    with zipfile.ZipFile(io.BytesIO(packed)) as pack:
        names = [name for name in pack.namelist() if name.endswith(".webp")]
        assert len(names) == len(SETS) * len(CONTENTS) == 60
        sizes = {Image.open(io.BytesIO(pack.read(name))).size for name in names}
    assert sizes == {(96, 96)}
    assert set(manifest()["contents"]) == set(CONTENTS)


def test_drawings_are_premultiplied_and_shared():
    drawing = load_drawing("pine tree", "noto", 48)
    assert drawing.shape == (48, 48, 4)
    assert (drawing[..., :3] <= drawing[..., 3:] + 0.01).all()
    assert 0.2 < drawing[..., 3].mean() < 0.8
    assert load_drawing("pine tree", "noto", 48) is drawing
    with pytest.raises(ValueError, match="read-only"):
        drawing += np.float32(1.0)
