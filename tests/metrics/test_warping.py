import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from stylecrafter_jax.metrics.flow import DenseInverseSearch
from stylecrafter_jax.metrics.warping import (
    correct_error,
    evalcrafter_error,
    inconsistent,
    inside,
    motion_boundary,
    warp,
)

ERRORS = [correct_error, evalcrafter_error]


def uniform(x, y, shape):
    """Returns the flow field that is (x, y) everywhere."""
    return np.broadcast_to(np.array([x, y], np.float32), (*shape, 2))


def rest(first, second):
    """The flow of a scene that does not move."""
    return uniform(0, 0, first.shape[:2])


def moving(x, y, first):
    """The flow of a scene that moves by (x, y) after the frame `first`, and its way back."""
    brightness = first.mean() / 255.0

    def flow(a, b):
        sign = 1 if abs(a.mean() - brightness) < abs(b.mean() - brightness) else -1
        return sign * uniform(x, y, a.shape[:2])

    return flow


def scene(x, y, h, w, seed=0):
    """Returns two frames of a random texture that moves by (x, y) whole pixels."""
    texture = np.random.default_rng(seed).integers(0, 256, (h + 40, w + 40, 3), dtype=np.uint8)
    views = [texture[20 - dy : 20 - dy + h, 20 - dx : 20 - dx + w] for dx, dy in ((0, 0), (x, y))]
    return np.stack(views)


def ramp(h, w, step, start=0):
    """Returns a picture whose columns get brighter by `step` levels each."""
    columns = (start + step * np.arange(w)).astype(np.uint8)
    return np.broadcast_to(columns[None, :, None], (h, w, 3))


# Laws


@pytest.mark.parametrize("error", ERRORS)
def test_identical_frames_have_no_error(error):
    frame = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    assert error(np.stack([frame] * 3), rest) == 0.0


@pytest.mark.parametrize("error, colours", [(correct_error, 1), (evalcrafter_error, 3)])
def test_a_known_change_of_brightness_has_its_square_as_error(error, colours):
    frames = np.stack([np.full((32, 48, 3), level, np.uint8) for level in (100, 151, 151)])
    assert_allclose(error(frames[:2], rest), colours * 0.2**2, rtol=1e-5)
    assert_allclose(error(frames, rest), colours * 0.2**2 / 2, rtol=1e-5)


@pytest.mark.parametrize("x, y", [(3, 0), (0, -5), (-4, 2)])
def test_a_known_translation_has_no_error_and_a_wrong_flow_has(x, y):
    frames = scene(x, y, 32, 48)
    assert_allclose(correct_error(frames, moving(x, y, frames[0])), 0.0, atol=1e-12)
    assert correct_error(frames, moving(-x, -y, frames[0])) > 0.1
    assert correct_error(frames, rest) > 0.1


@pytest.mark.parametrize("missed", [1, 2.5])
def test_a_flow_that_is_wrong_by_known_pixels_has_the_ramps_slope_as_error(missed):
    frames = np.stack([ramp(16, 40, 4, start=20), ramp(16, 40, 4, start=8)])  # moves by 3 pixels
    flow = moving(3 + missed, 0, frames[0])
    assert_allclose(correct_error(frames, flow), (4 * missed / 255) ** 2, rtol=1e-4)


def test_evalcrafter_measures_at_half_size_and_keeps_what_leaves_the_frame():
    # Halved, the ramp rises 8 levels a pixel and moves by 1; only the last of 16 columns leaves
    # the frame and is compared with the border, one pixel beside its own.
    frames = np.stack([ramp(16, 32, 4, start=20), ramp(16, 32, 4, start=12)])
    error = evalcrafter_error(frames, moving(1, 0, frames[0]))
    assert_allclose(error, 3 * (8 / 255) ** 2 / 16, rtol=1e-4)
    assert_allclose(correct_error(frames, moving(2, 0, frames[0])), 0.0, atol=1e-12)


def test_evalcrafter_counts_the_extension_of_the_border():
    # 10x18 halves to 5x9 and is extended to 8x16 by 1 row above and 3 columns to the left: the
    # corner counts 2 x 4 times.
    frames = np.zeros((2, 10, 18, 3), np.uint8)
    frames[1, :2, :2] = 51
    assert_allclose(evalcrafter_error(frames, rest), 3 * 0.2**2 * 8 / (8 * 16), rtol=1e-5)
    assert_allclose(correct_error(frames, rest), 0.2**2 * 4 / (10 * 18), rtol=1e-5)


def test_evalcrafter_leaves_an_odd_last_row_and_column_out():
    frames = np.zeros((2, 17, 33, 3), np.uint8)
    frames[1, 16], frames[1, :, 32] = 255, 255
    assert evalcrafter_error(frames, rest) == 0.0
    assert correct_error(frames, rest) > 0.0


def test_where_nothing_is_visible_there_is_no_error_or_the_best_one():
    frames = np.stack([np.full((16, 16, 3), level, np.uint8) for level in (0, 255)])

    def lost(first, second):
        return uniform(3, 0, first.shape[:2])  # there and back again is 6 pixels off

    assert np.isnan(correct_error(frames, lost))
    assert evalcrafter_error(frames, lost) == 0.0
    mixed = np.concatenate([frames, frames[1:]])  # the last pair is at rest and equal

    def lost_once(first, second):
        return (lost if not np.array_equal(first, second) else rest)(first, second)

    assert correct_error(mixed, lost_once) == 0.0


@pytest.mark.parametrize("error", ERRORS)
def test_one_frame_is_refused(error):
    with pytest.raises(ValueError, match="at least 2 frames, got 1"):
        error(np.zeros((1, 16, 16, 3), np.uint8), rest)


# The parts


def test_warp_takes_the_value_at_the_end_of_the_flow():
    image = np.arange(12, dtype=np.float32).reshape(3, 4, 1)
    assert_array_equal(warp(image, uniform(1, 1, (3, 4)))[:2, :3], image[1:, 1:])
    assert_allclose(warp(image, uniform(0.5, 0, (3, 4)))[:, :3], image[:, :3] + 0.5)
    assert_allclose(warp(image, uniform(0, -0.25, (3, 4)))[1:], image[1:] - 1)
    assert_array_equal(warp(image, uniform(9, 0, (3, 4))), np.repeat(image[:, 3:], 4, axis=1))


def test_inside_leaves_out_what_the_flow_takes_out_of_the_frame():
    assert inside(uniform(1, 0, (3, 4))).tolist() == [[True, True, True, False]] * 3
    assert inside(uniform(0, -0.5, (3, 4))).tolist() == [[False] * 4, [True] * 4, [True] * 4]


@pytest.mark.parametrize(
    "forward, backward, occluded",
    [
        ((4, 0), (-4, 0), False),
        ((4, 0), (0, 0), True),
        ((1, 0), (0, 0), True),  # 1 > 0.01 + 0.5
        ((0.7, 0), (0, 0), False),  # 0.49 < 0.0049 + 0.5
        ((0, 20), (0, -18), False),  # 4 < 0.01 (400 + 324) + 0.5
        ((0, 20), (0, -17), True),  # 9 > 0.01 (400 + 289) + 0.5
    ],
)
def test_pixels_that_do_not_come_back_are_occluded(forward, backward, occluded):
    shape = (48, 48)
    found = inconsistent(uniform(*forward, shape), uniform(*backward, shape))
    assert found.all() if occluded else not found.any()


def test_a_motion_boundary_is_where_the_flow_changes():
    flow = np.zeros((4, 6, 2), np.float32)
    flow[:, 3:, 0] = 0.05
    assert motion_boundary(flow).tolist() == [[False, False, True, False, False, False]] * 4
    flow[:, 3:, 0] = 0.04
    assert not motion_boundary(flow).any()  # 0.0016 < 0.002
    flow[2:, :, 1] = 5.0
    assert motion_boundary(flow)[1].all()


def test_evalcrafters_error_is_that_of_its_steps_in_pytorch():
    torch = pytest.importorskip("torch", reason="the original's operations are PyTorch's")
    rng = np.random.default_rng(3)
    frames = rng.integers(0, 256, (2, 37, 58, 3), dtype=np.uint8)
    fields = [rng.normal(size=(24, 32, 2)).astype(np.float32) * 0.2 + s for s in (1.5, -1.5)]
    order = iter(fields)
    found = evalcrafter_error(frames, lambda a, b: next(order))

    functional = torch.nn.functional
    x, y = torch.from_numpy(frames).permute(0, 3, 1, 2).float().div(255.0).split(1)
    x, y = (
        functional.interpolate(i, scale_factor=0.5, mode="bilinear", align_corners=False)
        for i in (x, y)
    )
    pad = [1, 2, 3, 3]  # 18x29 to 24x32
    x, y = (functional.pad(i, pad, mode="replicate") for i in (x, y))
    forward, backward = (torch.from_numpy(f).permute(2, 0, 1)[None].double() for f in fields)

    def resample(image, flow):
        _, _, h, w = image.shape
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        at_x, at_y = columns + flow[0, 0], rows + flow[0, 1]
        grid = torch.stack([2 * at_x / (w - 1) - 1, 2 * at_y / (h - 1) - 1], dim=-1)[None]
        return functional.grid_sample(
            image.double(), grid, padding_mode="border", align_corners=True
        )

    back = resample(backward, forward)
    squares = [(v**2).sum(1) for v in (back + forward, back, forward)]
    occluded = squares[0] > 0.01 * (squares[1] + squares[2]) + 0.5
    change = torch.zeros_like(squares[0])
    change[:, :, :-1] += ((forward[..., :-1] - forward[..., 1:]) ** 2).sum(1)
    change[:, :-1] += ((forward[..., :-1, :] - forward[..., 1:, :]) ** 2).sum(1)
    seen = ~(occluded | (change > 0.01 * squares[2] + 0.002))
    assert 0 < seen.sum() < seen.numel()
    wanted = (((resample(y, forward) - x) ** 2).sum(1) * seen).sum() / seen.sum()
    assert_allclose(found, float(wanted), rtol=1e-4)


# OpenCV's flow


@pytest.fixture(scope="module")
def dense():
    pytest.importorskip("cv2", reason="the metrics extra is not installed")
    return DenseInverseSearch()


def smooth_scene(x, y):
    """Returns two frames of a smooth texture that moves by (x, y) pixels."""
    rows, columns = np.mgrid[:96, :128].astype(np.float64)
    waves = [
        np.stack([np.sin(a * (columns - dx) + b * (rows - dy) + c) for a, b, c in PHASES]).sum(0)
        for dx, dy in ((0.0, 0.0), (x, y))
    ]
    grey = np.stack(waves) * 40.0 + 127.5
    return np.repeat(np.clip(grey, 0, 255).round().astype(np.uint8)[..., None], 3, axis=-1)


PHASES = ((0.21, 0.13, 0.0), (-0.17, 0.29, 1.0), (0.37, -0.05, 2.0))


@pytest.mark.parametrize("x, y", [(3.0, 2.0), (-1.5, 0.5)])
def test_opencv_finds_a_known_translation(dense, x, y):
    frames = smooth_scene(x, y)
    first, second = frames.astype(np.float32) / 255.0
    found = dense(first, second)[16:-16, 16:-16]
    assert_allclose(np.median(found, axis=(0, 1)), [x, y], atol=0.05)
    assert correct_error(frames, dense) < 0.01 * correct_error(frames, rest)
    assert evalcrafter_error(frames, dense) < 0.05 * evalcrafter_error(frames, rest)


def test_opencv_sees_no_motion_between_identical_frames(dense):
    frames = smooth_scene(0.0, 0.0)
    assert not dense(*(frames / np.float32(255.0))).any()
    assert [error(frames, dense) for error in ERRORS] == [0.0, 0.0]
    assert "OpenCV" in dense.name and "DIS" in dense.name


def test_frames_too_small_for_opencv_are_named(dense):
    with pytest.raises(ValueError, match="fails on frames of 8x8"):
        dense(*np.zeros((2, 8, 8, 3), np.float32))


def test_without_opencv_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match=r"pip install 'stylecrafter_jax\[metrics\]'"):
        DenseInverseSearch()
