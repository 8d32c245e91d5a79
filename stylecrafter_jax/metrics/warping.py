"""Warping error: how much a frame differs from its successor moved back along the optical flow.

For adjacent frames x and y, colours in [0, 1], let f be the flow from x to y at the pixels of x, g
the flow back, and W(y, f)(p) = y(p + f(p)), bilinear. With V the pixels p that are visible in both:

    E = mean over adjacent frames of
        sum over V of d(W(y, f)(p), x(p)) / |V|

`correct_error` takes d = mean over colours of the squared difference, and V those pixels that stay
inside the frame and come back to where they were (Sundaram et al. 2010, eq. 5):

    |f + W(g, f)|^2 <= 0.01 (|f|^2 + |W(g, f)|^2) + 0.5

`evalcrafter_error` is what EvalCrafter's released code computes, which StyleCrafter's paper says
it follows. It differs in these points:

- frames are halved (means of 2x2 pixels, an odd last row or column left out), extended on both
  sides to multiples of 8 by repeating the border, and measured with the extension;
- d is the sum over colours, not their mean: three times as much;
- V keeps pixels that leave the frame, compared with its nearest border pixel;
- V leaves motion boundaries out: |df/dx|^2 + |df/dy|^2 > 0.01 |f|^2 + 0.002;
- adjacent frames without a visible pixel count as 0, the best value; `correct_error` leaves them
  out of the mean.

Its flow is RAFT (`raft-things` unless `--small`, 20 iterations), which is given frames in [0, 1]
where the network wants [0, 255]. The flow is an argument here, so this is up to the function given.

Source: EvalCrafter, metrics/RAFT/optical_flow_scores.py, compute_video_warping_error, and
metrics/RAFT/warp_utils.py, detect_occlusion; both after fast_blind_video_consistency,
evaluate_WarpError.py, whose mask has three channels, so that it divides by three times as many.
Resample2d as in flownet2-pytorch, networks/resample2d_package/resample2d_kernel.cu; InputPadder as
in princeton-vl/RAFT. EvalCrafter's own copies of these two were not at hand, nor was a run of its
code; StyleCrafter's script and resolution are not published (its paper names RAFT-small).
"""

import itertools
from collections.abc import Callable

import numpy as np
from einops import reduce
from jaxtyping import Bool, Float, UInt8
from scipy.ndimage import map_coordinates

Frame = Float[np.ndarray, "h w 3"]
FlowField = Float[np.ndarray, "h w 2"]
# (frame, next frame), colours in [0, 1] -> (x, y) in pixels from each pixel of the first to where
# it is in the second.
Flow = Callable[[np.ndarray, np.ndarray], np.ndarray]
MULTIPLE = 8  # what RAFT's frames are extended to


def correct_error(frames: UInt8[np.ndarray, "f h w 3"], flow: Flow) -> float:
    """Returns the warping error by its definition, 0 to 1; NaN if no pixel is ever visible.

    Raises:
        ValueError: there is only one frame.
    """
    errors = []
    for x, y in _pairs(frames):
        forward, backward = flow(x, y), flow(y, x)
        visible = inside(forward) & ~inconsistent(forward, backward)
        difference = np.mean((warp(y, forward) - x) ** 2, axis=-1)
        errors.append(_mean_where(visible, difference))
    return _mean(errors)


def evalcrafter_error(frames: UInt8[np.ndarray, "f h w 3"], flow: Flow) -> float:
    """Returns the warping error as EvalCrafter's code does, 0 to 3.

    Raises:
        ValueError: there is only one frame, or it has a side of one pixel.
    """
    errors = []
    for x, y in _pairs(frames):
        x, y = _extended(_halved(x)), _extended(_halved(y))
        forward, backward = flow(x, y), flow(y, x)
        visible = ~(inconsistent(forward, backward) | motion_boundary(forward))
        difference = np.sum((warp(y, forward) - x) ** 2, axis=-1)
        errors.append(_mean_where(visible, difference) if visible.any() else 0.0)
    return _mean(errors)


def warp(
    image: Float[np.ndarray, "h w c"], flow: Float[np.ndarray, "h w 2"]
) -> Float[np.ndarray, "h w c"]:
    """Returns out(p) = image(p + flow(p)), bilinear; outside, the nearest border pixel."""
    rows, columns = np.indices(flow.shape[:2])
    at = np.stack([rows + flow[..., 1], columns + flow[..., 0]])
    channels = [
        map_coordinates(image[..., i], at, order=1, mode="nearest") for i in range(image.shape[-1])
    ]
    return np.stack(channels, axis=-1)


def inside(flow: Float[np.ndarray, "h w 2"]) -> Bool[np.ndarray, "h w"]:
    """Returns which pixels the flow leaves inside the frame."""
    h, w, _ = flow.shape
    rows, columns = np.indices((h, w))
    x, y = columns + flow[..., 0], rows + flow[..., 1]
    return (x >= 0) & (x <= w - 1) & (y >= 0) & (y <= h - 1)


def inconsistent(
    forward: Float[np.ndarray, "h w 2"], backward: Float[np.ndarray, "h w 2"]
) -> Bool[np.ndarray, "h w"]:
    """Returns which pixels do not come back when they go there and back: they are occluded."""
    back = warp(backward, forward)
    return _squared(forward + back) > 0.01 * (_squared(forward) + _squared(back)) + 0.5


def motion_boundary(flow: Float[np.ndarray, "h w 2"]) -> Bool[np.ndarray, "h w"]:
    """Returns the pixels whose flow differs from that of the next pixel, right or below."""
    change = sum(
        _squared(np.diff(flow, axis=axis, append=np.take(flow, [-1], axis=axis))) for axis in (0, 1)
    )
    return change > 0.01 * _squared(flow) + 0.002


def _pairs(frames: UInt8[np.ndarray, "f h w 3"]):
    """Returns each frame with the next one, colours in [0, 1]."""
    if len(frames) < 2:
        raise ValueError(f"a warping error needs at least 2 frames, got {len(frames)}")
    return itertools.pairwise(frames.astype(np.float32) / 255.0)


def _squared(vectors: Float[np.ndarray, "h w 2"]) -> Float[np.ndarray, "h w"]:
    return np.sum(np.square(vectors, dtype=np.float64), axis=-1)


def _mean_where(mask: Bool[np.ndarray, "h w"], values: Float[np.ndarray, "h w"]) -> float:
    return float(values[mask].mean(dtype=np.float64)) if mask.any() else float("nan")


def _mean(errors: list[float]) -> float:
    """Returns the mean without NaN; NaN if there is nothing else."""
    finite = [error for error in errors if not np.isnan(error)]
    return float(np.mean(finite)) if finite else float("nan")


def _halved(image: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "y x 3"]:
    h, w, _ = image.shape
    if min(h, w) < 2:
        raise ValueError(f"frames of {h}x{w} pixels cannot be halved")
    even = image[: h - h % 2, : w - w % 2]
    return reduce(even, "(y i) (x j) c -> y x c", "mean", i=2, j=2)


def _extended(image: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "y x 3"]:
    pad = [(-n % MULTIPLE // 2, -n % MULTIPLE - -n % MULTIPLE // 2) for n in image.shape[:2]]
    return np.pad(image, (*pad, (0, 0)), mode="edge")
