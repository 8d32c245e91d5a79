"""What style families are made of: colours, tones, edges, grain, cells.

Everything works on scenes of `CANVAS` x `CANVAS` pixels, float32: `rgb` in [0, 1], and `alpha`, how
much of a pixel the object covers. Families use `alpha` to keep the object apart from its
background, whatever their colours are.
"""

import colorsys
import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int
from scipy import ndimage

CANVAS = 128
Rgb = Float32[np.ndarray, "h w 3"]
Plane = Float32[np.ndarray, "h w"]
Colour = Float32[np.ndarray, " 3"]

# Row and column of every pixel, from 0 to 127.
ROWS, COLUMNS = (grid.astype(np.float32) for grid in np.mgrid[0:CANVAS, 0:CANVAS])
WHITE = np.ones(3, np.float32)
LUMINANCE = np.array([0.3, 0.59, 0.11], np.float32)
# Mean luminance under which a background counts as dark: nights have 0.1, sunsets 0.45.
DARK = 0.28


class StyleParameters(NamedTuple):
    """What distinguishes two instances of a family; all in [0, 1).

    Attributes:
        main: the hue that names the instance.
        second: a hue at least a quarter of the colour circle away from it.
        detail: size or shape of the texture.
        weight: strength of the texture.
    """

    main: float
    second: float
    detail: float
    weight: float


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """Returns a colour as red, green and blue; the hue goes round."""
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value), np.float32)


def mix(a: np.ndarray, b: np.ndarray, share: Plane | float) -> np.ndarray:
    """Returns a + share (b - a), for colours or pictures and one share for all or per pixel."""
    weight = share if isinstance(share, float) else np.asarray(share)[..., None]
    return a + weight * (b - a)


def ramp(t: Plane, *colours: Colour) -> Rgb:
    """Returns the colour at `t` in [0, 1] on a line through evenly spaced colours."""
    stops = np.linspace(0.0, 1.0, len(colours))
    table = np.stack(
        [np.interp(np.linspace(0, 1, 256), stops, [c[i] for c in colours]) for i in range(3)], -1
    )
    index = np.clip(t * 255.0 + 0.5, 0, 255).astype(np.uint8)
    return table.astype(np.float32)[index]


def clip(x: np.ndarray, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Returns `x` limited to [low, high]; faster than `np.clip` on small arrays."""
    return np.minimum(np.maximum(x, np.float32(low)), np.float32(high))


def mask(inside: np.ndarray, value: float = 1.0) -> Plane:
    """Returns `value` where a condition holds, else 0."""
    return np.float32(value) * inside


def luminance(rgb: Rgb) -> Plane:
    """Returns how bright every pixel is, in [0, 1]."""
    return rgb @ LUMINANCE


def saturate(rgb: Rgb, factor: float) -> Rgb:
    """Returns the picture with its colours this many times as far from grey."""
    grey = luminance(rgb)[..., None]
    return clip(grey + (rgb - grey) * np.float32(factor))


def blur(x: np.ndarray, sigma: float) -> np.ndarray:
    """Returns a plane or picture blurred by a Gaussian of `sigma` pixels."""
    sigmas = (sigma, sigma, 0.0)[: x.ndim]
    return ndimage.gaussian_filter(x, sigmas, mode="nearest", truncate=2.5)


def stretch(x: Plane, where: np.ndarray) -> Plane:
    """Returns `x` such that its values where `where` holds nearly fill [0, 1]."""
    inside = np.sort(x[where]) if where.any() else np.array([0.0, 1.0], np.float32)
    low, high = (float(inside[int(q * (len(inside) - 1))]) for q in (0.04, 0.96))
    return clip((x - low) / max(high - low, 0.2))


def tones(rgb: Rgb, alpha: Plane, dark: bool | None = None) -> Plane:
    """Returns a luminance in which the object cannot drown in its background.

    On a light background the object takes [0, 0.62] and the background [0.74, 1]; on a dark one
    the object takes [0.38, 1] and the background [0, 0.22].

    Args:
        rgb: the scene.
        alpha: cover of the object.
        dark: whether the background becomes dark; None keeps what it is.
    """
    grey, back = luminance(rgb), 1.0 - alpha
    if dark is None:
        dark = float((grey * back).sum() / (back.sum() + 1.0)) < DARK
    inside = alpha > 0.5
    front, behind = stretch(grey, inside), stretch(grey, ~inside)
    if dark:
        return mix_planes(0.22 * behind, 0.38 + 0.62 * front, alpha)
    return mix_planes(0.74 + 0.26 * behind, 0.62 * front, alpha)


def mix_planes(a: Plane | float, b: Plane | float, share: Plane) -> Plane:
    """Returns a + share (b - a) of planes."""
    return a + share * (b - a)


def duotone(
    rgb: Rgb, alpha: Plane, p: StyleParameters, keep: float = 0.3, dark: bool | None = None
) -> Rgb:
    """Returns the scene repainted: background in the main hue, object in the second.

    Args:
        rgb: the scene.
        alpha: cover of the object.
        p: the instance.
        keep: share of the scene's own colours that stays.
        dark: see `tones`.
    """
    t = tones(rgb, alpha, dark)
    back = ramp(t, hsv(p.main, 0.95, 0.2), hsv(p.main, 0.8, 0.7), hsv(p.main, 0.3, 1.0))
    front = ramp(t, hsv(p.second, 0.9, 0.12), hsv(p.second, 0.9, 0.8), hsv(p.second, 0.2, 1.0))
    return mix(mix(back, front, alpha), rgb, keep)


def slope(plane: Plane) -> Plane:
    """Returns the length of the gradient, per pixel."""
    down, right = np.zeros_like(plane), np.zeros_like(plane)
    down[1:-1] = plane[2:] - plane[:-2]
    right[:, 1:-1] = plane[:, 2:] - plane[:, :-2]
    return 0.5 * np.sqrt(down * down + right * right)


def outline(alpha: Plane, width: float) -> Plane:
    """Returns 1 on the object's border, about `width` pixels wide, and 0 away from it."""
    return clip(slope(blur(alpha, 0.5 * width)) * (2.2 * width))


def edges(rgb: Rgb, alpha: Plane, width: float) -> Plane:
    """Returns 1 on the lines of a drawing of the scene: borders of the object and inside it."""
    lines = slope(blur(luminance(rgb), 0.5 * width)) * (3.2 * width)
    return clip(np.maximum(lines - 0.08, outline(alpha, width)))


def around(alpha: Plane, width: float) -> Plane:
    """Returns the object grown by about `width` pixels."""
    return clip(blur(alpha, width) * 5.0)


@functools.cache
def _grain(sigma: float, along: float) -> Plane:
    white = np.random.default_rng(0).standard_normal((CANVAS, CANVAS)).astype(np.float32)
    smooth = ndimage.gaussian_filter(white, (sigma, along), mode="wrap")
    return smooth / smooth.std()


def grain(rng: np.random.Generator, sigma: float, along: float | None = None) -> Plane:
    """Returns noise of mean 0 and deviation 1, with features of `sigma` pixels.

    It is one seamless field per size, shifted: much faster than a new one.

    Args:
        rng: gives the shift.
        sigma: blur down the rows.
        along: blur along the columns, if another.
    """
    down, right = rng.integers(0, CANVAS, 2)
    field = _grain(sigma, sigma if along is None else along)
    return np.roll(field, (int(down), int(right)), (0, 1))


def slanted(plane: Plane, left: bool) -> Plane:
    """Returns a seamless plane whose rows became diagonals."""
    rows, columns = ROWS.astype(int), COLUMNS.astype(int)
    return plane[(rows + columns if left else rows - columns) % CANVAS, columns]


def blocks(x: np.ndarray, side: int) -> np.ndarray:
    """Returns a plane or picture averaged over squares."""
    n = CANVAS // side
    means = x.reshape(n, side, n, side, -1).mean((1, 3), dtype=np.float32)
    return means.repeat(side, 0).repeat(side, 1).reshape(x.shape)


def cells(rng: np.random.Generator, count: int, jitter: float) -> tuple[np.ndarray, Plane, Plane]:
    """Returns irregular cells around `count` x `count` points of a shaken grid.

    Returns:
        label: number of the cell of a pixel, int64 [h w].
        distance: pixels to the cell's point.
        border: how much farther the second nearest point is; 0 on the border.
    """
    step = CANVAS / count
    grid = np.moveaxis(np.indices((count, count)), 0, -1)
    points = (grid + 0.5 + jitter * (rng.random((count, count, 2)) - 0.5)) * step
    points = points.astype(np.float32)
    row, column = (ROWS / step).astype(int), (COLUMNS / step).astype(int)
    label = np.zeros((CANVAS, CANVAS), np.int64)
    nearest = np.full((CANVAS, CANVAS), np.inf, np.float32)
    second = nearest.copy()
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            r, c = np.clip(row + down, 0, count - 1), np.clip(column + right, 0, count - 1)
            number = r * count + c
            y, x = points[..., 0].ravel()[number] - ROWS, points[..., 1].ravel()[number] - COLUMNS
            d = np.sqrt(y * y + x * x)
            # Clamping at the rim meets a cell twice: it is not its own second nearest.
            again = number == label
            closer = d < nearest
            second = np.where(closer, nearest, np.where(again, second, np.minimum(second, d)))
            label = np.where(closer, number, label)
            nearest = np.where(closer, d, nearest)
    return label, nearest, second - nearest


def cell_means(rgb: Rgb, weight: Plane, label: Int[np.ndarray, "h w"]) -> Rgb:
    """Returns the picture with every cell in its mean colour, pixels counted by `weight`."""
    flat, w = label.ravel(), weight.ravel() + np.float32(1e-4)
    total = np.bincount(flat, w)
    sums = [np.bincount(flat, w * rgb[..., i].ravel()) for i in range(3)]
    means = np.stack(sums, -1) / np.maximum(total, 1e-9)[:, None]
    return means.astype(np.float32)[label]


def painted_cells(rgb: Rgb, alpha: Plane, label: Int[np.ndarray, "h w"]) -> Rgb:
    """Returns the picture in cells that the object's border cuts, so that its shape stays."""
    inside = (alpha > 0.5).astype(np.float32)
    front, back = cell_means(rgb, inside, label), cell_means(rgb, 1.0 - inside, label)
    return mix(back, front, inside)
