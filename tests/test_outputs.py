import errno
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stylecrafter_jax import outputs
from stylecrafter_jax.jobs import Entry, Job, JobError
from stylecrafter_jax.media.video import read_video
from stylecrafter_jax.options import Options
from stylecrafter_jax.outputs import describe_request, is_done, make_folders, write_result
from tests.limits import largest_file

FRAMES = np.random.default_rng(0).integers(0, 256, (4, 16, 24, 3), dtype=np.uint8)
SUFFIXES = {"mp4": ".mp4", "gif": ".gif", "webp": ".webp", "frames": "", "sheet": ".png"}


def job(folder, form="frames", **fields):
    path = Path(folder) / ("0000" + SUFFIXES[form])
    entry = Entry("a cat", ())
    return Job(**{"entry": entry, "index": 0, "weights": None, "path": path, "form": form} | fields)


def write(it, request, frames=FRAMES):
    write_result(it, frames, request, fps=8, notes={"batch": 1})


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*"))


def failing_at(monkeypatch, number):
    """Makes the renaming of that number, counted from 1, fail."""
    calls, replace = itertools.count(1), os.replace

    def fail(*args):
        if next(calls) == number:
            raise OSError(errno.EIO, "Input/output error")
        replace(*args)

    monkeypatch.setattr(outputs.os, "replace", fail)


@pytest.mark.parametrize("form", SUFFIXES)
def test_a_result_is_done_once_written_and_leaves_nothing_else(tmp_path, form):
    it = job(tmp_path, form)
    assert not is_done(it, {"seed": 1}, overwrite=False)
    write(it, {"seed": 1})
    assert is_done(it, {"seed": 1}, overwrite=False)
    assert {p.name for p in tmp_path.iterdir()} == {it.path.name, it.sidecar.name}


def test_frames_keep_every_pixel_and_a_sheet_holds_them_all(tmp_path):
    write(job(tmp_path), {})
    for i, frame in enumerate(FRAMES):
        np.testing.assert_array_equal(Image.open(tmp_path / f"0000/{i:05d}.png"), frame)
    write(job(tmp_path, "sheet"), {})
    np.testing.assert_array_equal(
        Image.open(tmp_path / "0000.png"), np.concatenate(list(FRAMES), axis=1)
    )


def test_a_video_has_the_frames_at_their_speed(tmp_path):
    write(job(tmp_path, "mp4"), {})
    frames, fps = read_video(tmp_path / "0000.mp4")
    assert frames.shape == FRAMES.shape and fps == 8


@pytest.mark.parametrize("form", SUFFIXES)
def test_a_result_embeds_nothing_but_pixels(tmp_path, form):
    it = job(tmp_path, form, entry=Entry("SECRETPROMPT", ()))
    write(it, {"prompt": "SECRETPROMPT"})
    media = [it.path] if it.path.is_file() else list(it.path.iterdir())
    assert not any(b"SECRETPROMPT" in path.read_bytes() for path in media)
    assert "SECRETPROMPT" in it.sidecar.read_text()


def test_the_sidecar_says_what_decides_the_pixels_and_what_they_are(tmp_path, tiny_config):
    options = Options(seed=5, steps=3).resolved(tiny_config)
    style = tmp_path / "style.png"
    it = job(tmp_path / "o", entry=Entry("a cat", (style,)), index=4, weights=(0.5,))
    request = describe_request(it, options, {"manifest_sha256": "ab"}, {style: "cd"})
    assert request == json.loads(json.dumps(request))
    write(it, request)
    content = json.loads(it.sidecar.read_text())
    assert content["request"] == request
    assert request["styles"] == [{"file": "style.png", "sha256": "cd"}]
    assert (request["index"], request["style_weights"]) == (4, [0.5])
    assert (request["options"]["seed"], request["options"]["guidance"]["text"]) == (5, 15.0)
    assert content["pixels"]["mean"] == pytest.approx(FRAMES.mean() / 255)
    assert {"jax", "stylecrafter_jax", "python", "device"} <= content["made_with"].keys()


def test_what_changes_no_pixel_changes_no_request(tmp_path, tiny_config):
    def request(folder, **given):
        options = Options(**given).resolved(tiny_config)
        return describe_request(job(folder), options, {}, {})

    assert request(tmp_path) == request(tmp_path / "elsewhere", decode_chunk=1)
    assert request(tmp_path) != request(tmp_path, seed=1)


def test_another_result_in_the_place_is_named_with_what_differs(tmp_path):
    it = job(tmp_path)
    write(it, {"prompt": "a", "options": {"seed": 1, "steps": 5}})
    with pytest.raises(JobError) as caught:
        is_done(it, {"prompt": "a", "options": {"seed": 2, "steps": 5}}, overwrite=False)
    assert "0000 is another result: options.seed is 1, wanted 2; use another --out" in str(
        caught.value
    )
    assert not is_done(it, {}, overwrite=True)


@pytest.mark.parametrize("text", ["", "[]", '{"request": 3}', "\0"])
def test_a_damaged_sidecar_is_no_result_and_no_crash(tmp_path, text):
    it = job(tmp_path)
    write(it, {"seed": 1})
    it.sidecar.write_text(text)
    with pytest.raises(JobError, match="use .*--overwrite"):
        is_done(it, {"seed": 1}, overwrite=False)


def test_a_file_that_is_not_ours_is_left_alone_unless_told(tmp_path):
    it = job(tmp_path, "mp4")
    it.path.write_bytes(b"mine")
    with pytest.raises(JobError, match="exists and is not ours"):
        is_done(it, {}, overwrite=False)
    assert not is_done(it, {}, overwrite=True)
    assert it.path.read_bytes() == b"mine"


def test_a_folder_with_other_files_is_never_replaced(tmp_path):
    it = job(tmp_path)
    it.path.mkdir()
    (it.path / "thesis.txt").write_text("years of work")
    with pytest.raises(JobError, match=r"other files \(thesis.txt\)"):
        is_done(it, {}, overwrite=True)
    with pytest.raises(JobError):
        write(it, {})
    assert files(tmp_path) == ["0000", "0000/thesis.txt"]


@pytest.mark.parametrize("form", SUFFIXES)
def test_writing_again_replaces_the_result(tmp_path, form):
    it = job(tmp_path, form)
    write(it, {"seed": 1}, FRAMES)
    before = files(tmp_path)
    write(it, {"seed": 2}, 255 - FRAMES)
    assert is_done(it, {"seed": 2}, overwrite=False) and files(tmp_path) == before
    fresh = job(tmp_path / "fresh", form)
    write(fresh, {"seed": 2}, 255 - FRAMES)
    media = [it.path] if it.path.is_file() else sorted(it.path.iterdir())
    for path in media:
        assert (
            path.read_bytes()
            == (fresh.path / path.name if form == "frames" else fresh.path).read_bytes()
        )


# The first renaming is within writing a video or picture; the last two are sidecar and result.
@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("form", ["mp4", "frames"])
def test_no_stop_leaves_a_result_with_anothers_sidecar(tmp_path, monkeypatch, form, number):
    it = job(tmp_path, form)
    write(it, {"seed": 1})
    failing_at(monkeypatch, number)
    with pytest.raises(JobError, match=f"cannot write {it.path}: Input/output error"):
        write(it, {"seed": 2})
    monkeypatch.undo()
    left = {p.name for p in tmp_path.iterdir()}
    if number == 1:  # nothing was in its place yet: the old result stays
        assert left == {it.path.name, it.sidecar.name}
        assert is_done(it, {"seed": 1}, overwrite=False)
    else:
        assert left == {it.sidecar.name}
        assert not is_done(it, {"seed": 1}, overwrite=False)
        assert not is_done(it, {"seed": 2}, overwrite=False)


@pytest.mark.parametrize("form", SUFFIXES)
def test_a_file_system_that_takes_no_more_leaves_no_half_file(tmp_path, form):
    it = job(tmp_path, form)
    with largest_file(64), pytest.raises(JobError) as caught:
        write(it, {})
    assert str(caught.value) == f"cannot write {it.path}: File too large"
    assert files(tmp_path) == []


def test_an_interrupt_while_writing_leaves_no_half_file(tmp_path, monkeypatch):
    def write_half(frames, path, fps):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(outputs, "write_frames", write_half)
    with pytest.raises(KeyboardInterrupt):
        write(job(tmp_path, "mp4"), {})
    assert files(tmp_path) == []


def test_a_file_name_that_is_no_unicode_can_be_recorded(tmp_path):
    it = job(tmp_path)
    request = {"styles": [{"file": os.fsdecode(b"caf\xe9.png")}]}
    write(it, request)
    assert is_done(it, request, overwrite=False)


def test_a_folder_that_cannot_be_made_is_found_before_generating(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JobError, match=r"cannot make the folder .*file.*: (File exists|Not a dir)"):
        make_folders([job(tmp_path / "file")])
    with pytest.raises(JobError, match="cannot make the folder /dev/full: File exists"):
        make_folders([job("/dev/full")])
    make_folders([job(tmp_path / "a" / "b")])
    assert (tmp_path / "a" / "b").is_dir()
