import dataclasses

import pytest

from stylecrafter_jax.config import SamplingConfig
from stylecrafter_jax.diffusion.guidance import Guidance
from stylecrafter_jax.diffusion.samplers import SAMPLERS
from stylecrafter_jax.options import FAST, Options


def test_what_is_not_given_is_the_models_own(tiny_config):
    options = Options().resolved(tiny_config)
    assert (options.height, options.width, options.frames, options.fps) == (16, 24, 4, 8)


def test_a_picture_has_its_own_size_one_frame_and_the_released_guidance(tiny_config):
    options = Options(image=True).resolved(tiny_config)
    assert (options.height, options.width, options.frames) == (16, 16, 1)
    assert options.guidance == Guidance(text=6.0, style=None)


def test_a_model_has_its_own_steps_sampler_and_guidance(tiny_config):
    own = SamplingConfig(
        steps=9,
        sampler="unipc",
        text_guidance=3.0,
        style_guidance=None,
        image_text_guidance=2.0,
        image_style_guidance=1.0,
    )
    config = dataclasses.replace(tiny_config, sampling=own)
    options, picture = Options().resolved(config), Options(image=True).resolved(config)
    assert (options.steps, options.sampler, options.eta) == (9, "unipc", None)
    assert options.guidance == Guidance(text=3.0, style=None)
    assert picture.guidance == Guidance(text=2.0, style=1.0)
    assert Options(steps=3, sampler="ddim").resolved(config).sampler == "ddim"


def test_a_sampler_that_needs_fewer_steps_takes_fewer_unless_told(tiny_config):
    def steps(**given):
        return Options(**given).resolved(tiny_config).steps

    assert steps() == steps(sampler="ddim") == steps(sampler="euler") == 50
    assert steps(sampler="dpmsolver++") == steps(sampler="unipc") == 25
    assert steps(sampler="unipc", steps=40) == 40
    assert steps(fast=True, sampler="ddim") == FAST["steps"]
    sampling = dataclasses.replace(tiny_config.sampling, steps=9, sampler="unipc")
    few = dataclasses.replace(tiny_config, sampling=sampling)
    assert {Options(sampler=name).resolved(few).steps for name in ("ddim", "dpmsolver++")} == {9}


def test_resolving_again_changes_nothing(tiny_config):
    for options in (Options(), Options(image=True, sampler="unipc", steps=7, seed=9)):
        once = options.resolved(tiny_config)
        assert once.resolved(tiny_config) == once


def test_only_ddim_draws_fresh_noise_unless_told(tiny_config):
    assert Options(sampler="ddim").resolved(tiny_config).eta == 1.0
    assert Options(sampler="ddim", eta=0.0).resolved(tiny_config).eta == 0.0
    for name in SAMPLERS:
        Options(sampler=name, eta=0.0).resolved(tiny_config)


MISTAKES = {
    "height not a multiple": ({"height": 18}, "height must be a positive multiple of 4, got 18"),
    "width not a multiple": ({"width": 30}, "width must be a positive multiple of 4, got 30"),
    "a size of 0 is no default": ({"height": 0}, "height must be a positive multiple of 4, got 0"),
    "negative size": ({"width": -8}, "width must be a positive multiple of 4, got -8"),
    "too many frames": (
        {"frames": 5},
        "frames must be between 1 and 4, the model's temporal length, got 5",
    ),
    "no frames": ({"frames": 0}, "frames must be between 1 and 4"),
    "a picture of many frames": ({"image": True, "frames": 3}, "a picture has 1 frame, got 3"),
    "no speed": ({"fps": 0}, "fps must be positive, got 0"),
    "a speed for a model that takes none": (
        {"condition_fps": 8},
        "this model is not told a condition_fps, got 8",
    ),
    "no steps": ({"steps": 0}, "steps must be between 1 and 1000, got 0"),
    "too many steps": ({"steps": 1001}, "steps must be between 1 and 1000, got 1001"),
    "unknown sampler": (
        {"sampler": "dpm"},
        "sampler must be one of ddim, dpmsolver++, unipc, euler, euler_ancestral, got 'dpm'",
    ),
    "eta for DPM-Solver": (
        {"sampler": "dpmsolver++", "eta": 0.5},
        "dpmsolver++ adds no noise, so it takes no eta (these do: ddim, euler_ancestral), got 0.5",
    ),
    "eta out of range": ({"eta": 1.5}, "eta must be between 0 and 1, got 1.5"),
    "eta is no number": ({"eta": float("nan")}, "eta must be between 0 and 1, got nan"),
    "negative style": ({"style_weight": -1.0}, "style_weight must be at least 0 and finite"),
    "endless style": ({"style_weight": float("inf")}, "style_weight must be at least 0"),
    "no strength": ({"strength": 0.0}, "strength must be in (0, 1], got 0.0"),
    "negative seed": ({"seed": -1}, "seed must be between 0 and 4294967295, got -1"),
    # JAX would drop the upper bits: 2**32 + 5 would silently be seed 5.
    "seed of over 32 bits": ({"seed": 2**32 + 5}, "seed must be between 0 and 4294967295"),
    "no chunk": ({"decode_chunk": 0}, "decode_chunk must be at least 1, got 0"),
    "tiny tile": ({"decode_tile": 4}, "decode_tile must be at least 8 latents, got 4"),
}


@pytest.mark.parametrize("given, message", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_named_with_what_came_and_what_was_wanted(tiny_config, given, message):
    with pytest.raises(ValueError) as caught:
        Options(**given).resolved(tiny_config)
    assert message in str(caught.value)


def test_a_model_that_is_told_a_speed_gets_its_own_unless_given(tiny_config):
    told = dataclasses.replace(
        tiny_config, unet=dataclasses.replace(tiny_config.unet, fps_cond=True)
    )
    assert Options().resolved(told).condition_fps == told.size.condition_fps
    assert Options(condition_fps=24).resolved(told).condition_fps == 24
    assert Options().resolved(tiny_config).condition_fps is None


def test_what_a_program_takes_as_arguments_asks_for_no_other_program(tiny_config):
    one = Options(seed=1, negative_prompt="blurry", style_weight=0.5, fps=4, decode_chunk=2)
    two = Options(seed=2)
    assert one.resolved(tiny_config).program_key() == two.resolved(tiny_config).program_key()
    for other in ({"steps": 3}, {"sampler": "unipc"}, {"guidance": Guidance(2.0)}, {"eta": 0.5}):
        key = Options(**other).resolved(tiny_config).program_key()
        assert key != two.resolved(tiny_config).program_key()


def test_fast_fills_in_only_what_is_not_given(tiny_config):
    fast = Options(fast=True).resolved(tiny_config)
    assert {name: getattr(fast, name) for name in FAST} == FAST
    given = Options(fast=True, steps=7, cache_interval=1).resolved(tiny_config)
    assert (given.steps, given.cache_interval, given.sampler) == (7, 1, FAST["sampler"])
    own = Options().resolved(tiny_config)
    assert (own.sampler, own.cache_interval) == (tiny_config.sampling.sampler, 1)
    # Of few blocks, as many as there are.
    unet = dataclasses.replace(tiny_config.unet, channel_mult=(1,))
    small = dataclasses.replace(tiny_config, unet=unet)
    assert Options(fast=True).resolved(small).cache_blocks == 1
