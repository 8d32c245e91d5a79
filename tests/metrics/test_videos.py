import json
from pathlib import Path

import numpy as np
import pytest

from stylecrafter_jax.jobs import Entry, JobError
from stylecrafter_jax.media.video import MediaError, write_frames
from stylecrafter_jax.metrics.videos import find_videos, is_still, read_frames, video_hash

ENTRIES = [Entry(f"prompt {i}", (Path("s.png"),), f"list.json, entry {i}") for i in range(2)]
FRAMES = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), dtype=np.uint8)


def touch(folder, *names):
    for name in names:
        (folder / name).write_bytes(b"")


def test_videos_are_found_by_number_whatever_their_format(tmp_path):
    (tmp_path / "0001").mkdir()
    touch(tmp_path, "0000.webm", "0000.webm.txt", "notes.txt", "0002.mp4")
    assert [path.name for path in find_videos(tmp_path, ENTRIES, 1)] == ["0000.webm", "0001"]
    touch(tmp_path, *(f"000{i}_{j}.gif" for i in range(2) for j in range(2)))
    names = [path.name for path in find_videos(tmp_path, ENTRIES, 2)]
    assert names == ["0000_0.gif", "0000_1.gif", "0001_0.gif", "0001_1.gif"]


def test_what_cannot_be_found_or_told_apart_is_named(tmp_path):
    with pytest.raises(JobError, match="there is no folder"):
        find_videos(tmp_path / "none", ENTRIES, 1)
    with pytest.raises(JobError, match="has no video named 0000, 0001$"):
        find_videos(tmp_path, ENTRIES, 1)
    with pytest.raises(JobError, match="0000_0, 0000_1, 0000_2 and 7 more"):
        find_videos(tmp_path, ENTRIES, 5)
    touch(tmp_path, "0000.mp4", "0001.mp4", "0001.gif")
    with pytest.raises(JobError, match="has both 0001.gif and 0001.mp4"):
        find_videos(tmp_path, ENTRIES, 1)


def test_a_video_of_another_prompt_is_refused(tmp_path):
    touch(tmp_path, "0000.mp4", "0001.mp4")
    sidecar = tmp_path / "0001.mp4.json"
    sidecar.write_text(json.dumps({"request": {"prompt": "prompt 1"}}))
    assert len(find_videos(tmp_path, ENTRIES, 1)) == 2
    sidecar.write_text(json.dumps({"request": {"prompt": "other"}}))
    with pytest.raises(JobError, match="was made of 'other', but list.json, entry 1 is 'prompt 1'"):
        find_videos(tmp_path, ENTRIES, 1)
    sidecar.write_text("{")
    with pytest.raises(JobError, match="0001.mp4.json is damaged"):
        find_videos(tmp_path, ENTRIES, 1)


def test_frames_come_back_from_every_format(tmp_path):
    write_frames(FRAMES, tmp_path / "frames", fps=8)
    write_frames(FRAMES, tmp_path / "a.webp", fps=8, lossless=True)
    write_frames(FRAMES[:1], tmp_path / "a.png", fps=8)
    write_frames(FRAMES, tmp_path / "a.mp4", fps=8)
    np.testing.assert_array_equal(read_frames(tmp_path / "frames"), FRAMES)
    np.testing.assert_array_equal(read_frames(tmp_path / "a.webp"), FRAMES)
    np.testing.assert_array_equal(read_frames(tmp_path / "a.png"), FRAMES[:1])
    assert read_frames(tmp_path / "a.mp4").shape == FRAMES.shape
    assert is_still(tmp_path / "a.png") and not is_still(tmp_path / "a.webp")


def test_what_is_no_video_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    touch(tmp_path, "a.png", "a.mp4")
    for name in ("empty", "a.png", "a.mp4"):
        with pytest.raises(MediaError, match=f"cannot read .*{name}"):
            read_frames(tmp_path / name)


def test_a_hash_covers_every_frame(tmp_path):
    write_frames(FRAMES, tmp_path / "a", fps=8)
    write_frames(FRAMES, tmp_path / "b", fps=8)
    assert video_hash(tmp_path / "a") == video_hash(tmp_path / "b")
    write_frames(FRAMES[:2], tmp_path / "c", fps=8)
    write_frames(FRAMES[[0, 2, 1]], tmp_path / "d", fps=8)
    assert len({video_hash(tmp_path / name) for name in "abcd"}) == 3
