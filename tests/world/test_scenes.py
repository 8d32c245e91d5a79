import dataclasses

import numpy as np
import pytest

from stylecrafter_jax.world.contents import CONTENTS, HELD_OUT_SETS, SETS, TRAIN_SETS
from stylecrafter_jax.world.drawing import caption, draw, draw_cover
from stylecrafter_jax.world.scenes import (
    FRAMES,
    MOTIONS,
    PLACES,
    SIDES,
    Scene,
    Spot,
    held_out,
    make_track,
    sample_scene,
)
from stylecrafter_jax.world.style_tools import StyleParameters
from stylecrafter_jax.world.styles import Style

NEON = Style("neon", StyleParameters(0.6, 0.1, 0.5, 0.5), 3)
RISO = Style("risograph", StyleParameters(0.99, 0.34, 0.5, 0.5), 3)


def scene(**changes):
    default = Scene(
        content="cat",
        drawing="twemoji",
        place="",
        motion="",
        track=(Spot(0, 0, 40),),
        seed=1,
    )
    return dataclasses.replace(default, **changes)


def clip(motion, **changes):
    track = make_track(motion, FRAMES, np.random.default_rng(0))
    return scene(motion=motion, track=track, **changes)


def test_drawing_is_deterministic_and_has_the_promised_shape():
    for one in (scene(), clip("rising"), scene(style=NEON), clip("growing", style=NEON)):
        pixels = draw(one)
        assert pixels.shape == (len(one.track), 64, 64, 3)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, draw(one))


@pytest.mark.parametrize("place", PLACES)
def test_places_vary_with_the_seed_but_keep_their_object(place):
    a, b = draw(scene(place=place, seed=1)), draw(scene(place=place, seed=2))
    solid = draw_cover(scene())[0] == 1.0
    assert (a[0] != b[0]).any(-1)[~solid].mean() > 0.5
    np.testing.assert_array_equal(a[0][solid], b[0][solid])


def test_a_clip_has_one_background():
    pixels, cover = (
        draw(clip("moving right", place="in the snow")),
        draw_cover(clip("moving right")),
    )
    bare = (cover == 0.0).all(0)
    assert bare.mean() > 0.2
    for frame in pixels:
        np.testing.assert_array_equal(frame[bare], pixels[0][bare])


@pytest.mark.parametrize(
    ("motion", "axis", "sign"),
    [("moving right", 1, 1), ("moving left", 1, -1), ("falling", 0, 1), ("rising", 0, -1)],
)
def test_objects_move_by_whole_steps_of_eight_pixels(motion, axis, sign):
    cover = draw_cover(clip(motion))
    # The steps laid down for 8 frames: -2 -1 -1 0 0 1 1 2.
    for i, j, pixels in [(1, 2, 0), (2, 3, 8), (3, 4, 0), (4, 5, 8), (5, 6, 0), (1, 6, 16)]:
        np.testing.assert_array_equal(np.roll(cover[i], sign * pixels, axis), cover[j])
    grid = np.indices((64, 64))
    track = [[(g * frame).sum() / frame.sum() for g in grid] for frame in cover[1:7]]
    travelled = np.array(track) - track[0]
    np.testing.assert_allclose(travelled[:, axis] * sign, [0, 0, 8, 8, 16, 16], atol=1e-3)
    np.testing.assert_allclose(travelled[:, 1 - axis], 0.0, atol=1e-3)
    first, last = cover[0].sum(), cover[7].sum()  # cut off at the rim, but there
    assert min(first, last) > 0.8 * cover[3].sum()


def test_pixels_move_with_the_cover():
    pixels = draw(clip("moving right", place="at sunset"))
    solid = draw_cover(clip("moving right"))[1] == 1.0
    moved = np.roll(solid, 16, 1)
    np.testing.assert_array_equal(pixels[1][solid], pixels[6][moved])


def test_growing_and_shrinking_mirror_one_another():
    area = draw_cover(clip("growing")).sum((1, 2))
    np.testing.assert_allclose(
        area / area[0], np.repeat([24, 32, 40, 48], 2) ** 2 / 24**2, rtol=0.02
    )
    np.testing.assert_array_equal(draw_cover(clip("growing"))[::-1], draw_cover(clip("shrinking")))


def test_still_clips_stand_still():
    pixels = draw(clip("", place="at night"))
    assert (pixels == pixels[0]).all()


def test_sampled_scenes_stay_on_the_grid_and_cover_it_evenly():
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng) for _ in range(3000)]
    spots = {one.track[0] for one in scenes}
    assert {spot.side for spot in spots} == set(SIDES)
    assert {(spot.column, spot.row) for spot in spots} == (
        {(k, 0) for k in range(-2, 3)} | {(0, k) for k in range(-2, 3)}
    )
    for values in (PLACES, CONTENTS):
        counts = [sum(v in (one.place, one.content) for one in scenes) for v in values]
        assert min(counts) > 0.7 * len(scenes) / len(values)
    assert {one.motion for one in scenes} == {""}
    clips = [sample_scene(rng, frames=5) for _ in range(1000)]
    counts = [sum(one.motion == motion for one in clips) for motion in MOTIONS]
    assert min(counts) > 0.7 * 1000 / len(MOTIONS)
    assert {len(one.track) for one in clips} == {5}


def test_a_tenth_of_the_combinations_is_held_out():
    held = {
        motion: np.array([[held_out(c, place, motion) for place in PLACES] for c in CONTENTS])
        for motion in MOTIONS
    }
    share = np.mean(list(held.values()))
    assert 0.08 < share < 0.12
    for grid in held.values():
        assert grid.any() and not grid.all(0).any() and not grid.all(1).any()
    rng = np.random.default_rng(1)
    for frames in (1, 8):
        for wanted in (True, False):
            one = sample_scene(rng, frames=frames, held=wanted)
            assert held_out(one.content, one.place, one.motion) == wanted


def test_captions_say_what_is_seen():
    assert caption(scene(), True) == "a cat"
    assert caption(scene(content="owl", place="on grass"), False) == "an owl on grass"
    moving = clip("moving left", place="on grass", style=NEON)
    assert caption(moving, True) == "a cat moving left on grass, blue neon"
    assert caption(moving, False) == "a cat moving left on grass"
    assert caption(scene(style=RISO), True) == "a cat, red and green risograph"


def test_impossible_wishes_are_refused():
    rng = np.random.default_rng(0)
    free = next(c for c in CONTENTS if not held_out(c, "", ""))
    with pytest.raises(ValueError, match="held=True"):
        sample_scene(rng, contents=[free], places=[""], held=True)
    with pytest.raises(ValueError, match="at least 2 frames, got 1"):
        make_track("rising", 1, rng)


def test_drawing_sets_differ_and_one_is_held_out():
    assert set(SETS) == set(TRAIN_SETS) | set(HELD_OUT_SETS)
    assert not set(TRAIN_SETS) & set(HELD_OUT_SETS)
    drawn = [draw(scene(drawing=drawing)) for drawing in SETS]
    assert all((drawn[i] != drawn[j]).any() for i in range(3) for j in range(i))
