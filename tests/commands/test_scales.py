import json

import numpy as np
import pytest
from PIL import Image

LONG = "a wolf that walks through the dark and silent forest at night"


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text(f"a cat\n\n  a dog \n{LONG}\n")
    return path


def test_scales_are_a_table_and_a_plot(run, small_bundle, style_files, prompts, tmp_path):
    out = tmp_path / "plots"
    styles = ["--styles", *style_files[:2]]
    ran = run("inspect", small_bundle, "--scales", "--prompts", prompts, *styles, "--out", out)
    assert ran.status == 0 and ran.err == []
    assert ran.out[1] == "prompts: 2 simple, 1 long (simple: at most 8 words)"
    heads = [f"{group} style{i}.png" for group in ("simple", "long") for i in (0, 1)]
    assert ran.out[2].split() == ["layer", "grid", *" ".join(heads).split()]
    rows = ran.out[3:-1]
    assert [row.split()[0] for row in rows] == [str(i) for i in range(len(rows))]
    assert rows[0].split()[1] == "input_blocks.1.1/transformer_blocks.0/attn2"
    assert all(row.count("±") == 4 for row in rows)
    assert ran.out[-1] == f"wrote {out / 'scales.png'}"
    assert [path.name for path in out.iterdir()] == ["scales.png"]
    assert np.asarray(Image.open(out / "scales.png")).std() > 0


def test_json_holds_every_number(run, small_bundle, style_files, prompts):
    given = ["--prompts", prompts, "a bird", "--styles", style_files[0], "--json", "--quick"]
    ran = run("inspect", small_bundle, "--scales", *given)
    found = json.loads("\n".join(ran.out))
    assert found["prompts"] == {"simple": ["a cat", "a dog", "a bird"], "long": [LONG]}
    assert found["plot"] is None and found["path"] == str(small_bundle)
    layers = len(found["layers"])
    assert [(s["group"], s["style"]) for s in found["series"]] == [
        ("simple", "style0.png"),
        ("long", "style0.png"),
    ]
    assert all(len(s["mean"]) == len(s["std"]) == layers for s in found["series"])
    name = "input_blocks.1.1/transformer_blocks.0/attn2"
    assert found["layers"][0] == {"name": name, "height": 8, "width": 12}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--scales", "--prompts", "a cat"], "--scales needs --prompts and --styles"),
        (["--styles", "a.png"], "--prompts, --styles and --out belong to --scales"),
        (
            ["--scales", "--prompts", "no.txt", "--styles", "a.png"],
            "there is no file no.txt",
        ),
        (
            ["--scales", "--prompts", "empty", "--styles", "a.png"],
            "empty holds no prompt; wanted one a line",
        ),
        (
            ["--scales", "--prompts", "latin", "--styles", "a.png"],
            "latin is no UTF-8 text",
        ),
        (
            ["--scales", "--prompts", "a cat", "--styles", "no.png"],
            "cannot read no.png: No such file or directory",
        ),
    ],
)
def test_a_mistake_is_one_line(run, small_bundle, tmp_path, given, message):
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    ran = run("inspect", small_bundle, *given)
    assert (ran.status, ran.out, ran.err) == (1, [], [f"stylecrafter: error: {message}"])


def test_a_checkpoint_file_has_no_scales(run, style_files):
    ran = run("inspect", "file.ckpt", "--scales", "--prompts", "a", "--styles", style_files[0])
    assert ran.status == 1 and len(ran.err) == 1
    assert "file.ckpt is no bundle" in ran.err[0]
