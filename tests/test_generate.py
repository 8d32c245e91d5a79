import functools
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from stylecrafter_jax import params as weights
from stylecrafter_jax.checkpoints.bundle import BundleWriter, load_bundle, part_of
from stylecrafter_jax.checkpoints.torch_files import CheckpointError
from stylecrafter_jax.diffusion.guidance import Guidance
from stylecrafter_jax.generate import StyleCrafter
from stylecrafter_jax.models.networks import parameter_shapes
from stylecrafter_jax.options import Options
from stylecrafter_jax.request import Request
from stylecrafter_jax.sharding import run_mesh

# Batches of other sizes are other programs, which round otherwise; on CPU in float32 the results
# may differ by one level of 256, no more.
ONE_LEVEL = 1


def silent(step, total):
    """Progress that does nothing: so all runs share the programs that report progress."""


@pytest.fixture
def make(small_model):
    """(requests, options) -> frames, from the shared model, with two steps."""

    def make(*requests, **options):
        options = Options(**{"steps": 2} | options)
        return small_model.generate(requests, options, progress=silent)

    return make


def levels_apart(a, b):
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_the_package_imports_no_jax_until_the_model_is_asked_for():
    code = (
        "import sys, stylecrafter_jax; assert 'jax' not in sys.modules; "
        "from stylecrafter_jax import cli; cli.build_parser(); assert 'jax' not in sys.modules; "
        "from stylecrafter_jax import StyleCrafter, Options, Request, Guidance; "
        "from stylecrafter_jax.generate import StyleCrafter as same; assert StyleCrafter is same"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_prompt_and_a_style_image_give_frames(small_model, style_files):
    frames = small_model("a cat", style_files[0], steps=2, progress=silent)
    assert frames.dtype == np.uint8 and frames.shape == (1, 4, 16, 24, 3)
    assert frames.std() > 0


def test_path_picture_and_array_give_the_same_frames(small_model, style_files):
    path = style_files[0]
    array = np.array(Image.open(path))
    sources = [path, str(path), Image.open(path), array, [path], (array / np.float32(255))]
    first, *others = [small_model("a cat", s, steps=2, progress=silent) for s in sources]
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_seed_index_prompt_and_style_decide_the_frames(make, style_files):
    one, two = style_files[:2]
    first = make(Request("a cat", [one]))
    np.testing.assert_array_equal(make(Request("a cat", [one])), first)
    others = [
        make(Request("a cat", [one]), seed=124),
        make(Request("a cat", [one], index=1)),
        make(Request("a dog on the moon", [one])),
        make(Request("a cat", [two])),
        make(Request("a cat", [one]), style_weight=0.2),
        make(Request("a cat", [one]), negative_prompt="a moon"),
    ]
    assert all(levels_apart(other, first) > 0 for other in others)


@pytest.fixture
def requests(style_files):
    return [Request(f"picture {i}", [style_files[i]], index=i) for i in range(3)]


def test_a_result_does_not_depend_on_the_size_of_its_batch(make, requests):
    alone = np.concatenate([make(request) for request in requests])
    pairs = np.concatenate([make(*requests[:2]), make(requests[2], requests[2])[:1]])
    assert levels_apart(pairs, alone) <= ONE_LEVEL
    assert levels_apart(alone[0], alone[1]) > ONE_LEVEL


def test_a_result_does_not_depend_on_the_rest_of_its_batch(make, requests):
    together = make(*requests)
    np.testing.assert_array_equal(make(*requests[::-1])[::-1], together)
    assert levels_apart(together[2:], make(requests[2])) <= ONE_LEVEL


def test_a_weight_of_zero_leaves_a_reference_out_and_two_counts_it_twice(small_model, style_files):
    one, two, _ = style_files

    def tokens(*references):
        requests = [Request("a cat", *reference) for reference in references]
        options = Options().resolved(small_model.config)
        return np.asarray(small_model.encode(requests, options).style)

    alone, both = tokens([[one]]), tokens([[one, two]])
    scale = np.abs(both - alone).max()
    assert scale > 0.001
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=0.01 * scale)
    close(tokens([[one, two], [1.0, 0.0]]), alone)
    close(tokens([[one, two], [2.0, 1.0]]), tokens([[one, one, two]]))
    close(tokens([[two, one]]), both)
    close(tokens([[one]], [[one, two]]), np.concatenate([alone, both]))


def test_style_weight_zero_is_the_model_without_style(make, style_files):
    ordinary = {"guidance": Guidance(text=3.0)}
    plain = make(Request("a cat"), **ordinary)
    styled = make(Request("a cat", style_files[:1]), style_weight=0.0, **ordinary)
    assert levels_apart(plain, styled) <= ONE_LEVEL
    assert levels_apart(plain, make(Request("a cat", style_files[:1]), **ordinary)) > ONE_LEVEL


def test_a_program_is_compiled_once_per_shape(make, small_model, style_files):
    make(Request("a cat", style_files[:1]))
    compiled = small_model.programs.compile_seconds
    make(Request("long " * 100, style_files[1:2], index=5), seed=7, negative_prompt="no")
    make(Request("", [np.zeros((9, 600, 4), np.uint8)]), style_weight=3.0, fps=2)
    assert small_model.programs.compile_seconds == compiled


def test_a_kept_inner_part_changes_only_the_steps_that_take_it(small_model, style_files):
    requests = [Request("a cat", style_files[:1])]

    def latents(**options):
        resolved = Options(sampler="euler", **options).resolved(small_model.config)
        condition = small_model.encode(requests, resolved)
        return np.asarray(small_model.sample(condition, requests, resolved))

    np.testing.assert_allclose(latents(steps=1, cache_interval=2), latents(steps=1), atol=1e-4)
    whole = latents(steps=3)
    assert np.abs(latents(steps=3, cache_interval=2) - whole).max() > 1e-2


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.8)])
def test_who_watches_a_kept_inner_part_gets_the_same_frames(small_model, style_files, interval):
    guidance = Guidance(text=5.0, style=3.0, interval=interval)
    options = Options(steps=4, cache_interval=3, guidance=guidance)
    requests = [Request("a cat", style_files[:1])]
    watched = small_model.generate(requests, options, progress=silent)
    assert levels_apart(small_model.generate(requests, options), watched) <= ONE_LEVEL


def test_a_picture_has_one_frame_of_its_own_size(make, style_files):
    assert make(Request("a cat", style_files[:1]), image=True).shape == (1, 1, 16, 16, 3)


def test_progress_counts_the_steps_in_order(small_model, style_files):
    seen = []
    small_model("a cat", style_files[0], steps=2, progress=lambda *step: seen.append(step))
    assert seen == [(0, 2), (1, 2), (2, 2)]


def test_who_watches_gets_the_same_frames_from_the_same_program(small_model, style_files):
    watched = small_model("a cat", style_files[0], steps=2, progress=silent)
    compiled = small_model.programs.compile_seconds
    np.testing.assert_array_equal(small_model("a cat", style_files[0], steps=2), watched)
    assert small_model.programs.compile_seconds == compiled


@pytest.mark.parametrize("error", [RuntimeError("no more"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", [0, 1])
def test_what_progress_raises_comes_out_as_it_was(small_model, style_files, capfd, error, step):
    def progress(done, total):
        if done == step:
            raise error

    with pytest.raises(type(error)) as caught:
        small_model("a cat", style_files[0], steps=2, progress=progress)
    assert caught.value is error
    assert capfd.readouterr().err == ""
    frames = small_model("a cat", style_files[0], steps=2, progress=silent)
    assert frames.shape == (1, 4, 16, 24, 3)


def test_encoders_may_be_freed_after_each_call(small_bundle, small_model, style_files):
    model = StyleCrafter.load(small_bundle, keep_encoders=False)
    model.programs = small_model.programs
    expected = small_model("a cat", style_files[0], steps=2, progress=silent)
    np.testing.assert_array_equal(
        model("a cat", style_files[0], steps=2, progress=silent), expected
    )
    assert not any("encoder" in part for part in model._device)
    with pytest.raises(ValueError):
        model("a cat", ["nowhere.png"], steps=2)
    assert not any("encoder" in part for part in model._device)


def test_frames_to_start_from_leave_their_mark(small_model, style_files):
    def started(level, strength):
        start = np.full((4, 16, 24, 3), level, np.uint8)
        return small_model(
            "a cat", style_files[0], start=start, steps=2, strength=strength, progress=silent
        )

    assert started(0, 0.5).shape == (1, 4, 16, 24, 3)
    assert levels_apart(started(0, 0.5), started(255, 0.5)) > ONE_LEVEL


MISTAKES = {
    "no prompt": (([], None), {}, "there is no prompt"),
    "no Unicode": (("a \udcff", None), {}, "is not valid Unicode"),
    "empty list": (("a", []), {}, "style is an empty list"),
    "weights without styles": (
        ("a", None),
        {"style_weights": [1.0]},
        "1 style weights for 0 style images",
    ),
    "weights all zero": (("a", ["x"]), {"style_weights": [0.0]}, "not all 0, got [0.0]"),
    "negative weight": (("a", ["x"]), {"style_weights": [-1.0]}, "must be at least 0"),
    "no number": (("a", ["x"]), {"style_weights": [float("nan")]}, "must be at least 0"),
    "no such image": (("a", "nowhere.png"), {}, "cannot read nowhere.png: No such file"),
    "size": (("a", None), {"height": 17}, "height must be a positive multiple of 2, got 17"),
    "strength alone": (("a", None), {"strength": 0.5}, "strength 0.5 needs frames to start from"),
    "wrong start": (
        ("a", None),
        {"start": np.zeros((3, 16, 24, 3), np.uint8)},
        "the start has frames, height, width (3, 16, 24), not (4, 16, 24)",
    ),
}


@pytest.mark.parametrize("positional, named, message", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_named(small_model, positional, named, message):
    with pytest.raises(ValueError) as caught:
        small_model(*positional, steps=2, progress=silent, **named)
    assert message in str(caught.value)


def test_styled_and_unstyled_requests_do_not_mix(make, style_files):
    with pytest.raises(ValueError, match="1 of the batch's 2 prompts have style images"):
        make(Request("a", style_files[:1]), Request("b"))
    with pytest.raises(ValueError, match="index must be between 0 and 4294967295, got -1"):
        make(Request("a", index=-1))
    with pytest.raises(ValueError, match="a prompt must be a text, got 3"):
        make(Request(3))


def test_a_base_model_takes_no_style_image(small_bundle, small_model, style_files):
    config, params = load_bundle(small_bundle, expected=parameter_shapes)
    base = {k: v for k, v in params.items() if part_of(k) != "adapter"}
    model = StyleCrafter(config, base, small_model.tokenizer)
    with pytest.raises(ValueError, match="this model has no style adapter"):
        model("a cat", style_files[0])


def test_a_bundle_that_cannot_generate_says_what_it_lacks(tmp_path, tiny_config, tiny_params):
    with BundleWriter(tmp_path / "adapter", tiny_config) as writer:
        for name, value in weights.select(tiny_params, weights.ADAPTER).items():
            writer.add(name, value)
    with pytest.raises(CheckpointError, match="cannot generate: it has no text_encoder, unet, vae"):
        StyleCrafter.load(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="is no bundle"):
        StyleCrafter.load(tmp_path)


@pytest.mark.slow
def test_bfloat16_weights_and_compute_stay_near_float32(small_bundle, make, style_files):
    half = StyleCrafter.load(small_bundle, dtype="bfloat16", param_dtype="bfloat16")
    request = Request("a cat", style_files[:1])
    gentle = {"guidance": Guidance(text=1.0), "sampler": "ddim", "eta": 0.0}
    options = Options(steps=2, **gentle)
    frames = half.generate([request], options, progress=silent)
    assert half.dtype.name == "bfloat16"
    # 8 bits of mantissa through a few dozen layers: a few of 255 levels.
    assert levels_apart(frames, make(request, **gentle)) <= 16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "changes"),
    [
        ({"frames": 4}, {}),
        ({"data": 2, "frames": 2}, {"cache_interval": 2}),
        ({"fsdp": 2}, {}),
        ({"frames": 4}, {"image": True}),  # one frame for each of two pictures
        ({"data": 2, "frames": 4}, {}),
        ({"tensor": 2}, {}),
        ({"fsdp": 2, "frames": 2, "tensor": 2}, {}),
        ({"data": 3}, {"prompts": ["a thing"]}),  # a branch of guidance for each
    ],
)
def test_devices_that_work_together_make_what_one_makes(small_bundle, small_model, sizes, changes):
    if jax.device_count() < 8:
        pytest.skip("eight devices are not here")
    sizes = dict(sizes)
    data = sizes.pop("data", 1)
    mesh = run_mesh(data, **sizes, rows=data * sizes.get("fsdp", 1))
    model = StyleCrafter.load(small_bundle, mesh=mesh)
    style = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    settings = {"steps": 3, "progress": lambda done, steps: None, **changes}
    prompts = settings.pop("prompts", ["a thing", "another"])
    wanted = small_model(prompts, style, **settings)
    found = model(prompts, style, **settings)
    # Rounding may put a value on the other side of a half.
    assert np.abs(found.astype(int) - wanted.astype(int)).max() <= 1
