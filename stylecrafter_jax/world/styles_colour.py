"""Style families that paint: brushes, tiles, cells, stitches, layers of colour.

A family takes a scene of 128x128 pixels, the cover of its object, the parameters of the instance,
and a generator that is the same for all scenes of an instance; it returns the scene restyled.
"""

import numpy as np
from scipy import ndimage

from stylecrafter_jax.world.style_tools import (
    CANVAS,
    COLUMNS,
    ROWS,
    WHITE,
    Plane,
    Rgb,
    StyleParameters,
    around,
    blocks,
    blur,
    cells,
    clip,
    duotone,
    edges,
    grain,
    hsv,
    luminance,
    mask,
    mix,
    outline,
    painted_cells,
    ramp,
    saturate,
    slanted,
    tones,
)

Rng = np.random.Generator
DOTS = 32  # of paint, side by side


def pixel_art(rgb: Rgb, alpha: Plane, p: StyleParameters, rng: Rng) -> Rgb:
    """Large pixels of a few colours, the object with a dark rim."""
    flat = blocks(duotone(rgb, alpha, p, keep=0.25), 4)
    levels = 3.0 + round(2.0 * p.detail)
    flat = np.round(flat * levels) / levels
    rim = mask(blocks(outline(alpha, 2.0), 4) > 0.35, 0.85)
    return mix(flat, hsv(p.main, 0.9, 0.15), rim)


def watercolor(rgb: Rgb, alpha: Plane, p: StyleParameters, rng: Rng) -> Rgb:
    """Washes that run, gather at their borders, and leave paper white at the rim."""
    down, right = (2.0 * grain(rng, 5.0) for _ in range(2))
    rows = clip(ROWS + down + 0.5, 0.0, CANVAS - 1.0).astype(np.intp)
    columns = clip(COLUMNS + right + 0.5, 0.0, CANVAS - 1.0).astype(np.intp)
    wash = blur(duotone(rgb, alpha, p, keep=0.4, dark=False), 1.0)[rows, columns]
    gathered = edges(rgb, alpha, 3.0)[rows, columns]
    wash = mix(wash, WHITE, clip(0.17 + 0.1 * grain(rng, 6.0)))
    wash = mix(wash, hsv(p.second, 0.8, 0.5), 0.6 * gathered)
    rim = np.minimum(np.minimum(ROWS, CANVAS - 1 - ROWS), np.minimum(COLUMNS, CANVAS - 1 - COLUMNS))
    return mix(wash, hsv(p.main, 0.06, 1.0), clip(1.0 - rim / 6.0 + 0.2 * grain(rng, 2.0)))


def oil_painting(rgb: Rgb, alpha: Plane, p: StyleParameters, rng: Rng) -> Rgb:
    """Flat strokes with the relief of a brush."""
    colours = duotone(rgb, alpha, p, keep=0.35)
    half = 0.25 * (
        colours[::2, ::2] + colours[1::2, ::2] + colours[::2, 1::2] + colours[1::2, 1::2]
    )
    strokes = kuwahara(half, 3).repeat(2, 0).repeat(2, 1)
    strokes = mix(blur(strokes, 0.8), hsv(p.second, 0.9, 0.2), 0.45 * edges(rgb, alpha, 2.0))
    angle = np.float32(2.0 * np.pi * p.detail)
    across = (COLUMNS * np.cos(angle) + ROWS * np.sin(angle)) * np.float32(0.9)
    relief = 0.06 * np.sin(across + 3.0 * grain(rng, 5.0)) + 0.05 * grain(rng, 1.0)
    return clip(saturate(strokes, 1.3) + relief[..., None])


def kuwahara(rgb: Rgb, side: int) -> Rgb:
    """Returns, for every pixel, the mean of whichever neighbouring square varies least."""
    mean = ndimage.uniform_filter(rgb, side, axes=(0, 1))
    grey = luminance(rgb)
    spread = ndimage.uniform_filter(grey * grey, side) - ndimage.uniform_filter(grey, side) ** 2
    best, least = mean, np.full_like(spread, np.inf)
    for shift in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        by = tuple(side // 2 * s for s in shift)
        there = np.roll(spread, by, (0, 1))
        best = np.where((there < least)[..., None], np.roll(mean, by, (0, 1)), best)
        least = np.minimum(there, least)
    return best


def pointillism(rgb: Rgb, alpha: Plane, p: StyleParameters, rng: Rng) -> Rgb:
    """Dots of paint on paper, none of quite the same colour."""
    label, distance, _ = cells(rng, DOTS, 0.5)
    dots = painted_cells(duotone(rgb, alpha, p, keep=0.3), alpha, label)
    shake = rng.normal(0.0, 0.06, (DOTS * DOTS, 3)).astype(np.float32)
    paper = hsv(p.main, 0.2, 1.0) if p.detail > 0.4 else hsv(p.main, 0.7, 0.35)
    return mix(paper, clip(dots + shake[label]), clip(2.8 - distance))


def comic(rgb: Rgb, alpha: Plane, p: StyleParameters, rng: Rng) -> Rgb:
    """Flat bright colours, black lines, printed dots behind the object."""
    flat = np.round(saturate(duotone(rgb, alpha, p, keep=0.45), 1.6) * 3.0) / 3.0
    dots = mask((COLUMNS % 8 - 3.5) ** 2 + (ROWS % 8 - 3.5) ** 2 < 4.0 + 4.0 * p.detail)
    flat = mix(flat, hsv(p.main, 0.95, 0.75), 0.8 * dots * (1.0 - alpha))
    return mix(flat, hsv(p.main, 0.5, 0.04), edges(rgb, alpha, 2.6))


def cross_stitch(rgb: Rgb, alpha: Plane, p: StyleParameters, rng: Rng) -> Rgb:
    """Crosses of thread on cloth."""
    thread = blocks(saturate(duotone(rgb, alpha, p, keep=0.3), 1.2), 4)
    u, v = COLUMNS % 8, ROWS % 8
    cross = (np.abs(u - v) < 2.1) | (np.abs(u + v - 7.0) < 2.1)
    cloth = mix(thread, hsv(p.main, 0.25, 0.95), 0.6)
    return np.where(cross[..., None], thread, cloth)


def clay(rgb: Rgb, alpha: Plane, p: StyleParameters, rng: Rng) -> Rgb:
    """Two clays in relief, lit from the upper left."""
    t = tones(rgb, alpha, dark=False)
    height = blur(0.5 * t + 1.1 * alpha, 1.6)
    light = np.zeros_like(height)
    light[1:-1, 1:-1] = (height[2:, 1:-1] - height[:-2, 1:-1]) + (
        height[1:-1, 2:] - height[1:-1, :-2]
    )
    shade = clip(0.72 + 0.4 * t, 0.7, 1.05) - clip(1.6 * light, -0.5, 0.5)
    colours = mix(hsv(p.main, 0.5, 0.85), hsv(p.second, 0.75, 0.95), alpha)
    return clip(colours * (shade + 0.02 * grain(rng, 1.5))[..., None])


def mosaic(rgb: Rgb, alpha: Plane, p: StyleParameters, rng: Rng) -> Rgb:
    """Square tiles, cut where the object ends."""
    label = (ROWS // 6).astype(int) * 22 + (COLUMNS // 6).astype(int)
    tiles = painted_cells(saturate(duotone(rgb, alpha, p, keep=0.3), 1.2), alpha, label)
    shake = rng.normal(0.0, 0.05, (22 * 22, 1)).astype(np.float32)
    joints = mask((COLUMNS % 6 < 1) | (ROWS % 6 < 1))
    mortar = hsv(p.main, 0.2, 0.95) if p.detail > 0.5 else hsv(p.main, 0.5, 0.1)
    return mix(clip(tiles + shake[label]), mortar, np.maximum(0.85 * joints, outline(alpha, 1.5)))


def vhs(rgb: Rgb, alpha: Plane, p: StyleParameters, rng: Rng) -> Rgb:
    """A worn tape: scan lines, colours beside one another, a cast."""
    t = tones(rgb, alpha) - 0.2 * edges(rgb, alpha, 2.0) * alpha
    cast = ramp(t, hsv(p.main, 0.9, 0.15), hsv(p.main, 0.75, 0.75), hsv(p.main, 0.2, 1.0))
    tape = mix(saturate(cast, 1.2), saturate(rgb, 1.3), 0.2)
    shift = 2 + int(3.0 * p.detail)
    red, blue = np.roll(tape[..., 0], shift, 1), np.roll(tape[..., 2], -shift, 1)
    tape = np.stack([red, tape[..., 1], blue], -1)
    tape = tape + (0.06 * grain(rng, 0.5, 6.0))[..., None]
    return clip(tape * (1.0 - mask(ROWS % 4 >= 2, 0.32))[..., None])


def poster(rgb: Rgb, alpha: Plane, p: StyleParameters, rng: Rng) -> Rgb:
    """Three flat tones before rays of light, the object cut out with a white rim."""
    angle = np.arctan2(ROWS - 150.0, COLUMNS - 64.0)
    rays = np.floor(angle * np.float32((7.0 + 3.0 * p.detail) / np.pi * 2.0)) % 2
    t = tones(rgb, alpha, dark=False)
    flat = np.round(t * 4.0) / 4.0
    back = ramp(0.6 * luminance(rgb) + 0.4 * rays, hsv(p.main, 0.9, 0.45), hsv(p.main, 0.5, 1.0))
    shape = ramp(
        flat / 0.62, hsv(p.second, 0.9, 0.15), hsv(p.second, 0.9, 0.8), hsv(p.second, 0.15, 1.0)
    )
    return mix(mix(back, WHITE, around(alpha, 2.5)), shape, alpha)


def stained_glass(rgb: Rgb, alpha: Plane, p: StyleParameters, rng: Rng) -> Rgb:
    """Panes of coloured glass in lead, which follows the object's border."""
    label, _, border = cells(rng, 11, 0.8)
    colours = saturate(duotone(rgb, alpha, p, keep=0.3), 1.5)
    panes = clip(painted_cells(colours, alpha, label) * 1.1)
    panes = mix(panes, saturate(colours, 1.3), 0.45 * alpha)
    between = clip(1.6 - border) * (1.0 - 0.6 * alpha)
    return mix(panes, hsv(p.main, 0.4, 0.05), np.maximum(between, outline(alpha, 3.0)))


def crayon(rgb: Rgb, alpha: Plane, p: StyleParameters, rng: Rng) -> Rgb:
    """Waxy slanted strokes that leave paper bare."""
    strokes = slanted(grain(rng, 0.8, 6.0), p.detail > 0.5)
    colours = saturate(blur(duotone(rgb, alpha, p, keep=0.35), 0.8), 1.3)
    drawn = mix(hsv(p.main, 0.08, 1.0), colours, clip(0.72 + 0.3 * strokes))
    return mix(
        drawn, hsv(p.second, 0.9, 0.3), 0.75 * edges(rgb, alpha, 2.4) * clip(0.8 + 0.3 * strokes)
    )


def paper_cut(rgb: Rgb, alpha: Plane, p: StyleParameters, rng: Rng) -> Rgb:
    """Sheets of coloured paper with shadows under them."""
    levels = np.round(blur(tones(rgb, alpha), 0.8) * 4.0) / 4.0
    sheets = ramp(
        levels, hsv(p.main + 0.04, 0.9, 0.25), hsv(p.main, 0.75, 0.75), hsv(p.main, 0.2, 1.0)
    )
    shape = ramp(levels, hsv(p.second, 0.9, 0.25), hsv(p.second, 0.8, 0.8), hsv(p.second, 0.3, 1.0))
    raised = np.roll(levels, (3, 3), (0, 1))
    shadow = mask(blur(raised, 1.2) > levels + 0.06, 0.25)
    shadow = shadow + 0.55 * np.roll(blur(alpha, 2.0), (4, 4), (0, 1)) * (1.0 - alpha)
    return mix(sheets, shape, alpha) * (1.0 - shadow)[..., None]
