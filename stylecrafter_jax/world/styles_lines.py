"""Style families that draw: lines, hatching, dots of ink, one or two colours.

A family takes a scene of 128x128 pixels, the cover of its object, the parameters of the instance,
and a generator that is the same for all scenes of an instance; it returns the scene restyled.
"""

import numpy as np

from stylecrafter_jax.world.style_tools import (
    CANVAS,
    COLUMNS,
    ROWS,
    WHITE,
    Plane,
    Rgb,
    StyleParameters,
    around,
    blur,
    clip,
    edges,
    grain,
    hsv,
    luminance,
    mask,
    mix,
    mix_planes,
    outline,
    ramp,
    slope,
    stretch,
    tones,
)

Rng = np.random.Generator


def ink_drawing(rgb: Rgb, alpha: Plane, p: StyleParameters, rng: Rng) -> Rgb:
    """Pen on coloured paper; the object is left white."""
    paper = mix(hsv(p.main, 0.4, 1.0), WHITE, 0.85 * alpha)
    return mix(paper, hsv(p.main, 0.9, 0.25), edges(rgb, alpha, 1.8 + p.detail))


def pencil_sketch(rgb: Rgb, alpha: Plane, p: StyleParameters, rng: Rng) -> Rgb:
    """Hatching of a coloured pencil, denser where it is dark."""
    way = 1.0 if p.detail > 0.5 else -1.0
    hatch = 0.5 + 0.5 * np.sin((COLUMNS + way * ROWS) * np.float32(1.1))
    shade = (1.0 - tones(rgb, alpha)) * (0.45 + 0.75 * hatch) + 0.05 * grain(rng, 0.7)
    lead = clip(np.maximum(shade, edges(rgb, alpha, 2.0)))
    return mix(hsv(p.main, 0.12, 0.97), hsv(p.main, 0.9, 0.4), lead)


def halftone(rgb: Rgb, alpha: Plane, p: StyleParameters, rng: Rng) -> Rgb:
    """A screen of dots in one ink on paper of another hue."""
    turns = np.float32(2.0 * np.pi / (6.0 + 2.0 * p.detail) / np.sqrt(2.0))
    dots = 0.5 + 0.25 * (np.cos((COLUMNS + ROWS) * turns) + np.cos((COLUMNS - ROWS) * turns))
    dark = 1.0 - tones(rgb, alpha)
    ink = clip((dark - 1.0 + dots) * 4.0 + 0.5)
    ink = np.maximum(ink, 0.9 * edges(rgb, alpha, 1.8))
    return mix(hsv(p.main, 0.4, 1.0), hsv(p.second, 0.95, 0.45), ink)


def neon(rgb: Rgb, alpha: Plane, p: StyleParameters, rng: Rng) -> Rgb:
    """Glowing tubes in the dark, from one hue to a near one."""
    lines = edges(rgb, alpha, 2.0)
    glow = clip(blur(lines, 4.0) * 1.5)
    colour = ramp(
        (ROWS + COLUMNS) / (2 * CANVAS), hsv(p.main, 0.95, 1.0), hsv(p.main + 0.1, 0.9, 1.0)
    )
    night = hsv(p.main, 0.8, 0.1)
    return clip(night + colour * glow[..., None] + (0.5 * colour + 0.5) * lines[..., None])


def blueprint(rgb: Rgb, alpha: Plane, p: StyleParameters, rng: Rng) -> Rgb:
    """White construction lines on a grid; the object is hatched."""
    sheet = np.zeros_like(alpha)
    sheet[::16] = sheet[1::16] = sheet[:, ::16] = sheet[:, 1::16] = 0.25
    hatch = alpha * mask((ROWS + COLUMNS) % 6 < 2, 0.35)
    lines = np.maximum(np.maximum(sheet, hatch), 0.95 * edges(rgb, alpha, 1.8))
    return mix(hsv(p.main, 0.9, 0.45 + 0.15 * p.weight), WHITE, lines)


def chalk(rgb: Rgb, alpha: Plane, p: StyleParameters, rng: Rng) -> Rgb:
    """Rubbed chalk of two colours on a dark board."""
    rough = clip(0.8 + 0.3 * grain(rng, 0.7))
    board = mix(hsv(p.main, 0.85, 0.24), hsv(p.main, 0.65, 0.45), clip(0.3 + 0.2 * grain(rng, 6.0)))
    t = tones(rgb, alpha, dark=True)
    strokes = 0.4 + mask((ROWS - COLUMNS) % 6 < 3, 0.6)
    filled = mix(board, hsv(p.second, 0.45, 1.0), clip(alpha * t * strokes * rough))
    return mix(filled, hsv(p.main, 0.15, 1.0), edges(rgb, alpha, 2.2) * rough)


def risograph(rgb: Rgb, alpha: Plane, p: StyleParameters, rng: Rng) -> Rgb:
    """Two transparent inks, one printed a little beside the other, with grain."""
    t = clip(tones(rgb, alpha) + 0.1 * grain(rng, 0.6))
    t = 0.25 * t + 0.75 * np.round(t * 3.0) / 3.0
    shift = 2 if p.detail > 0.5 else -2
    object_ink = np.roll(alpha, shift, 1) * (0.55 + 0.45 * (1.0 - t))
    back_ink = mix_planes(1.15 - 0.7 * t, 0.75 * (1.0 - t), alpha)
    first, second = hsv(p.main, 0.9, 0.85), hsv(p.second, 0.9, 0.8)
    return mix(WHITE, first, clip(back_ink)) * mix(WHITE, second, clip(object_ink))


def tinted_photo(rgb: Rgb, alpha: Plane, p: StyleParameters, rng: Rng) -> Rgb:
    """An old print in one colour: grain, and corners that darken."""
    grey = clip(0.2 * luminance(rgb) + 0.8 * tones(rgb, alpha) + 0.03 * grain(rng, 0.8))
    away = (COLUMNS / CANVAS - 0.5) ** 2 + (ROWS / CANVAS - 0.5) ** 2
    toned = ramp(grey, hsv(p.main, 0.9, 0.1), hsv(p.main, 0.65, 0.6), hsv(p.main, 0.25, 1.0))
    return toned * clip(1.15 - (0.9 + p.weight) * away)[..., None]


def thermal(rgb: Rgb, alpha: Plane, p: StyleParameters, rng: Rng) -> Rgb:
    """A heat camera's colours: the object is warm."""
    heat = tones(rgb, alpha, dark=True)
    heat = blur(heat + 0.22 * alpha * (1.0 - heat), 1.3)
    cold, cool = hsv(p.main, 0.95, 0.2), hsv(p.main, 0.95, 0.65)
    warm, hot = hsv(p.second, 0.95, 0.85), hsv(p.second + 0.05, 0.35, 1.0)
    return ramp(heat, cold, cool, mix(cool, warm, 0.7), warm, hot)


def silhouette(rgb: Rgb, alpha: Plane, p: StyleParameters, rng: Rng) -> Rgb:
    """A dark shape with faint inner lines before a glowing sky."""
    glow = clip(0.75 * ROWS / CANVAS + 0.35 * luminance(rgb) - 0.1)
    sky = ramp(glow, hsv(p.main, 0.95, 0.5), hsv(p.main, 0.75, 0.95), hsv(p.main + 0.06, 0.35, 1.0))
    sun = (COLUMNS - 92.0) ** 2 + (ROWS - 40.0) ** 2 < (14.0 + 6.0 * p.detail) ** 2
    sky[sun] = hsv(p.main + 0.1, 0.15, 1.0)
    inner = edges(rgb, alpha, 1.8) * clip(alpha * 4.0 - 3.0)
    shape = mix(hsv(p.main, 0.8, 0.08), hsv(p.main, 0.7, 0.9), 0.55 * inner)
    return mix(sky, shape, alpha)


def moonlight(rgb: Rgb, alpha: Plane, p: StyleParameters, rng: Rng) -> Rgb:
    """Everything dark but what one coloured light falls on from above."""
    light = tones(rgb, alpha, dark=True)
    rim = outline(alpha, 2.5) * clip(1.1 - ROWS / CANVAS)
    halo = 0.35 * around(alpha, 9.0) * (1.0 - alpha)
    t = clip(light ** np.float32(1.2) * 0.85 + halo + 0.5 * rim)
    return ramp(t, hsv(p.main, 0.9, 0.06), hsv(p.main, 0.8, 0.55), hsv(p.main, 0.2, 1.0))


def contour_map(rgb: Rgb, alpha: Plane, p: StyleParameters, rng: Rng) -> Rgb:
    """Height lines over tinted land; the object is high ground."""
    hill = 0.5 * around(alpha, 8.0) + 0.1 * luminance(rgb) + 0.05 * grain(rng, 9.0)
    shape = 0.7 + 0.3 * stretch(luminance(rgb), alpha > 0.5)
    levels = 6.0 + 4.0 * p.detail
    line = clip(1.3 - np.abs((hill * levels) % 1.0 - 0.5) / (slope(hill) * levels + 0.02))
    land = ramp(hill, hsv(p.main, 0.65, 0.9), hsv(p.main, 0.45, 1.0), hsv(p.main, 0.15, 1.0))
    peak = ramp(shape, hsv(p.second, 0.9, 0.3), hsv(p.second, 0.9, 0.4), hsv(p.second, 0.5, 1.0))
    drawn = mix(mix(land, hsv(p.main, 0.9, 0.4), 0.7 * line), peak, alpha)
    return mix(drawn, hsv(p.main, 0.9, 0.25), edges(rgb, alpha, 2.0) * alpha)


def spray_paint(rgb: Rgb, alpha: Plane, p: StyleParameters, rng: Rng) -> Rgb:
    """A stencil sprayed on a wall, with mist and drops around it."""
    wall = hsv(p.second, 0.3, 0.9)
    wall = wall * (1.0 - 0.06 * clip(grain(rng, 1.2), -2.0, 2.0) - 0.12 * seams())[..., None]
    wall = wall * (0.75 + 0.25 * luminance(rgb))[..., None]
    mist = clip(0.55 * blur(alpha, 6.0) * (1.0 + 0.4 * grain(rng, 0.8)))
    drops = (grain(rng, 1.0) > 2.3) & (blur(alpha, 9.0) > 0.1)
    paint = hsv(p.main, 0.95, 0.8)
    wall = mix(wall, paint, np.maximum(mist, mask(drops)))
    dark = clip((0.34 - tones(rgb, alpha, dark=False)) * 8.0 + 0.5)
    shape = mix(hsv(p.main, 0.35, 1.0), hsv(p.main, 1.0, 0.45), dark)
    return mix(mix(wall, shape, alpha), hsv(p.main, 1.0, 0.35), outline(alpha, 2.2))


def seams() -> Plane:
    """Returns 1 on the joints of a brick wall."""
    odd = (ROWS // 16) % 2
    return mask((ROWS % 16 < 2) | ((COLUMNS + 16 * odd) % 32 < 2))


def woodcut(rgb: Rgb, alpha: Plane, p: StyleParameters, rng: Rng) -> Rgb:
    """Carved lines of one dark ink; the ground is cut away around the object."""
    angle = np.float32(np.pi * p.detail)
    wave = (COLUMNS * np.cos(angle) + ROWS * np.sin(angle)) * np.float32(0.95)
    carved = 0.5 + 0.5 * np.sin(wave + 0.6 * grain(rng, 8.0))
    t = tones(rgb, alpha)
    back = clip(((1.0 - t) * 0.85 + 0.2 - 0.9 * carved) * 5.0 + 0.5)
    back = back * (1.0 - around(alpha, 3.0))
    inside = stretch(luminance(rgb), alpha > 0.5)
    front = clip((0.55 - inside - 0.35 * carved) * 5.0 + 0.5)
    ink = np.maximum(mix_planes(back, front, alpha), edges(rgb, alpha, 2.4))
    return mix(hsv(p.main, 0.4, 1.0), hsv(p.main, 0.9, 0.2), ink)


def foil(rgb: Rgb, alpha: Plane, p: StyleParameters, rng: Rng) -> Rgb:
    """Metal leaf pressed into dark card."""
    sheen = 0.12 * np.sin((COLUMNS - ROWS) * np.float32(0.09) + 6.0 * p.weight)
    leaf = alpha * (0.25 + 0.5 * tones(rgb, alpha, dark=True) + sheen)
    t = clip(leaf + 0.75 * edges(rgb, alpha, 1.8))
    metal = (hsv(p.main, 0.95, 0.5), hsv(p.main, 0.75, 0.9), hsv(p.main, 0.2, 1.0))
    return ramp(t, hsv(p.main, 0.7, 0.1), *metal)
