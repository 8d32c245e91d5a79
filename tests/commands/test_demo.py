from PIL import Image


def test_the_demo_writes_a_video_a_sheet_and_its_references(run, tmp_path, monkeypatch):
    monkeypatch.setattr("stylecrafter_jax.commands.demo.CLIPS", (("a cat at night", 3),))
    ran = run("demo", "--out", "o")
    assert ran.status == 0 and ran.err == []
    assert ran.out[-2:] == ["o/demo.mp4", "o/demo_sheet.png"]
    # Reference and eight frames of 64x64 pixels, three times as large.
    assert Image.open(tmp_path / "o" / "demo_sheet.png").size == (9 * 64 * 3, 64 * 3)
    assert Image.open(tmp_path / "o" / "style_0.png").size == (64, 64)
    assert (tmp_path / "o" / "demo.mp4").stat().st_size > 0
