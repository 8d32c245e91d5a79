import errno

import av
import numpy as np
import pytest
from PIL import Image

from stylecrafter_jax.media import video
from stylecrafter_jax.media.video import (
    MediaError,
    contact_sheet,
    read_video,
    to_uint8,
    write_frames,
)
from tests.limits import largest_file

MULTIPLE = ["a.mp4", "a.gif", "a.webp", "frames"]
SINGLE = ["a.png", "a.jpg", "a.JPEG"]


def smooth(frames=6, h=48, w=64):
    t, y, x = np.mgrid[:frames, :h, :w]
    waves = [np.sin((x + 2 * t) / 11), np.cos((y - t) / 13), np.sin((x + y + t) / 17)]
    return (127.5 + 90 * np.stack(waves, -1)).astype(np.uint8)


def noise(frames=4, size=64):
    return np.random.default_rng(0).integers(0, 256, (frames, size, size, 3), dtype=np.uint8)


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2))


def animation(path):
    """Frames and their durations in milliseconds, read by Pillow."""
    frames, durations = [], []
    with Image.open(path) as image:
        for i in range(image.n_frames):
            image.seek(i)
            frames.append(np.asarray(image.convert("RGB")))
            durations.append(image.info["duration"])
    return np.stack(frames), durations


def only(folder, *names):
    return sorted(p.name for p in folder.iterdir()) == sorted(names)


def test_pixels_are_cut_to_whole_numbers_as_in_the_original():
    x = np.array([-2.0, -1.0, -0.999, 0.0, 0.999, 1.0, 3.0], np.float32)
    # 0 is 127.5 and 0.999 is 254.87: the fraction is dropped.
    assert to_uint8(x).tolist() == [0, 0, 0, 127, 254, 255, 255]


def test_every_pixel_value_survives_when_its_middle_is_given():
    values = np.arange(256)
    np.testing.assert_array_equal(
        to_uint8(((values + 0.5) / 127.5 - 1.0).astype(np.float32)), values
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_pixels_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="not finite"):
        to_uint8(np.array([0.0, bad], np.float32))


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_mp4_keeps_frames_and_rate(tmp_path, monkeypatch, codec):
    monkeypatch.setattr(av, "codecs_available", {codec})
    write_frames(smooth(), tmp_path / "a.mp4", fps=8)
    frames, fps = read_video(tmp_path / "a.mp4")
    assert frames.shape == smooth().shape and frames.dtype == np.uint8
    assert fps == 8 and psnr(frames, smooth()) > 35


@pytest.mark.parametrize("fps", [0.5, 7.3, 23.976, 30000 / 1001, 120])
def test_mp4_keeps_odd_rates(tmp_path, fps):
    write_frames(smooth(3), tmp_path / "a.mp4", fps=fps)
    assert read_video(tmp_path / "a.mp4")[1] == pytest.approx(fps, rel=1e-5)


def test_lower_crf_is_closer(tmp_path):
    errors = []
    for crf in (5, 40):
        write_frames(noise(), tmp_path / "a.mp4", fps=8, crf=crf)
        errors.append(-psnr(read_video(tmp_path / "a.mp4")[0], noise()))
    assert errors[0] < errors[1]


def test_odd_sides_of_an_mp4_are_extended_by_their_edge(tmp_path):
    write_frames(smooth(3, 47, 63), tmp_path / "a.mp4", fps=8)
    frames, _ = read_video(tmp_path / "a.mp4")
    assert frames.shape == (3, 48, 64, 3)
    assert psnr(frames[:, :47, :63], smooth(3, 47, 63)) > 35
    assert psnr(frames[:, 47], frames[:, 46]) > 35


def test_reading_stops_after_the_frames_that_are_wanted(tmp_path):
    write_frames(smooth(), tmp_path / "a.mp4", fps=8)
    whole, _ = read_video(tmp_path / "a.mp4")
    np.testing.assert_array_equal(read_video(tmp_path / "a.mp4", max_frames=2)[0], whole[:2])


@pytest.mark.parametrize(("degrees", "turns"), [(90, 1), (-90, -1), (180, 2)])
def test_turned_video_is_read_upright(tmp_path, degrees, turns):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV cannot write a rotation")
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.set_display_rotation(degrees)
        for frame in smooth(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    frames, _ = read_video(tmp_path / "a.mp4")
    assert psnr(frames, np.rot90(smooth(2), turns, axes=(1, 2))) > 25


def test_lossless_webp_keeps_every_pixel_and_the_time(tmp_path):
    write_frames(noise(), tmp_path / "a.webp", fps=7, lossless=True)
    frames, durations = animation(tmp_path / "a.webp")
    np.testing.assert_array_equal(frames, noise())
    assert sum(durations) == round(4 * 1000 / 7)


def test_lossy_webp_is_close(tmp_path):
    write_frames(smooth(), tmp_path / "a.webp", fps=8)
    assert psnr(animation(tmp_path / "a.webp")[0], smooth()) > 32


def test_gif_is_close_and_keeps_the_time_of_a_rate_it_cannot_show_evenly(tmp_path):
    write_frames(smooth(8), tmp_path / "a.gif", fps=8)
    frames, durations = animation(tmp_path / "a.gif")
    assert psnr(frames, smooth(8)) > 22
    assert sum(durations) == 1000 and set(durations) == {120, 130}


def test_folder_and_stills_hold_the_pixels(tmp_path):
    write_frames(noise(3), tmp_path / "frames", fps=8)
    assert only(tmp_path / "frames", "00000.png", "00001.png", "00002.png")
    for i in range(3):
        stored = np.asarray(Image.open(tmp_path / "frames" / f"{i:05d}.png"))
        np.testing.assert_array_equal(stored, noise(3)[i])
    write_frames(noise(1), tmp_path / "a.png", fps=8)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), noise(1)[0])
    write_frames(smooth(1), tmp_path / "a.jpg", fps=8)
    assert psnr(np.asarray(Image.open(tmp_path / "a.jpg")), smooth(1)[0]) > 30


@pytest.mark.parametrize("name", MULTIPLE + SINGLE)
def test_one_frame_can_be_written_in_every_format(tmp_path, name):
    write_frames(smooth(1), tmp_path / "new" / name, fps=8)
    assert only(tmp_path / "new", name)


@pytest.mark.parametrize("name", MULTIPLE + SINGLE)
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_left_when_a_writer_is_interrupted(tmp_path, monkeypatch, name, error):
    suffix = (tmp_path / name).suffix.lower()
    writer = video.WRITERS[suffix]

    def interrupted(frames, path, quality):
        writer(frames, path, quality)
        raise error

    monkeypatch.setitem(video.WRITERS, suffix, interrupted)
    with pytest.raises(error):
        write_frames(smooth(1), tmp_path / name, fps=8)
    assert only(tmp_path)


def test_encoder_that_fails_midway_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    encode = av.VideoFrame.from_ndarray
    seen = []

    class Frame:
        @staticmethod
        def from_ndarray(frame, format):
            seen.append(frame)
            if len(seen) == 3:
                raise KeyboardInterrupt
            return encode(frame, format=format)

    monkeypatch.setattr(av, "VideoFrame", Frame)
    with pytest.raises(KeyboardInterrupt):
        write_frames(smooth(), path, fps=8)
    assert only(tmp_path, "a.mp4") and path.read_bytes() == b"old"


@pytest.mark.parametrize("name", MULTIPLE + SINGLE)
def test_file_that_grows_too_large_is_one_line_and_leaves_nothing(tmp_path, name):
    frames = noise(4 if name in MULTIPLE else 1, 192)
    with largest_file(8192), pytest.raises(MediaError) as error:
        write_frames(frames, tmp_path / name, fps=8)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)
    assert only(tmp_path)


def test_full_disk_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(MediaError, match=r"cannot write .*a\.png: No space left on device$"):
        write_frames(smooth(1), tmp_path / "a.png", fps=8)
    assert only(tmp_path)


def test_folder_with_files_is_not_overwritten(tmp_path):
    (tmp_path / "frames").mkdir()
    write_frames(smooth(1), tmp_path / "frames", fps=8)
    with pytest.raises(MediaError, match="not empty"):
        write_frames(smooth(2), tmp_path / "frames", fps=8)
    assert only(tmp_path / "frames", "00000.png")


@pytest.mark.parametrize(
    ("name", "frames", "options", "message"),
    [
        ("a.avi", smooth(1), {}, r"unknown suffix '\.avi'.*wanted one of \.mp4, \.gif"),
        ("a.png", smooth(2), {}, r"\.png holds one frame, got 2"),
        ("a.mp4", smooth(1)[:0], {}, "wanted uint8 frames"),
        ("a.mp4", smooth(1), {"fps": 0.0}, "frames per second, got 0"),
        ("a.mp4", smooth(1), {"fps": float("nan")}, "frames per second, got nan"),
        ("a.gif", smooth(1), {"fps": 60.0}, "0.01 to 50 frames per second, got 60"),
        ("a.mp4", smooth(1), {"crf": 52}, "from 0 to 51, got 52"),
        ("a.mp4", smooth(1), {"lossless": True}, r"\.mp4 is never lossless"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(tmp_path, name, frames, options, message):
    with pytest.raises(ValueError, match=message):
        write_frames(frames, tmp_path / name, **({"fps": 8.0} | options))
    assert only(tmp_path)


def test_unreadable_video_is_one_line_that_names_it(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    for name in ("text.mp4", "empty.mp4", "missing.mp4"):
        with pytest.raises(MediaError) as error:
            read_video(tmp_path / name)
        assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def test_contact_sheet_of_frames_goes_row_by_row_and_fills_with_white():
    frames = noise(5, 8)
    sheet = contact_sheet(frames, columns=3)
    assert sheet.shape == (16, 24, 3)
    np.testing.assert_array_equal(sheet[:8, 16:], frames[2])
    np.testing.assert_array_equal(sheet[8:, 8:16], frames[4])
    assert (sheet[8:, 16:] == 255).all()


def test_contact_sheet_of_clips_has_a_row_for_each_from_first_to_last_frame():
    long, short = noise(9, 8), smooth(2, 8, 8)
    sheet = contact_sheet([long, short], columns=3)
    assert sheet.shape == (16, 24, 3)
    np.testing.assert_array_equal(sheet[:8], np.concatenate(long[[0, 4, 8]], axis=1))
    np.testing.assert_array_equal(sheet[8:, :16], np.concatenate(short, axis=1))
    assert (sheet[8:, 16:] == 255).all()


@pytest.mark.parametrize("clips", [[], [noise(2, 8), noise(2, 16)], noise(0, 8)])
def test_contact_sheet_needs_frames_of_one_size(clips):
    with pytest.raises(ValueError, match="frames of one size"):
        contact_sheet(clips, columns=2)
