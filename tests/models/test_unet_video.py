import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from stylecrafter_jax import params as weights_of
from stylecrafter_jax.config import UNetConfig
from stylecrafter_jax.models.unet_video import (
    UNetVideo,
    dual_attention_names,
    unet_context_kv,
    unet_embeddings,
    unet_plan,
)
from tests.models import constructor
from tests.models.filled import fill, normal, shapes_of

MODEL = {"atol": 1e-4, "rtol": 1e-4}
# One transformer pair in the middle, one before the first block: every kind of layer but resizing.
# With 32 channels a group norm would have one channel a group and remove the time embedding.
TINY = UNetConfig(
    model_channels=64,
    num_res_blocks=0,
    attention_resolutions=(),
    channel_mult=(1,),
    context_dim=8,
    num_head_channels=16,
    temporal_length=3,
)
X, T = normal(0, 2, 3, 2, 4, 4), jnp.array([3.0, 700.0])
TEXT, STYLE = normal(1, 2, 5, 8), normal(2, 2, 3, 8)


def modified(config, **changes):
    return dataclasses.replace(config, **changes)


PLANS = {
    "released": UNetConfig(),
    "no block": UNetConfig(num_res_blocks=0),
    "one block": UNetConfig(num_res_blocks=1),
    "three blocks": UNetConfig(num_res_blocks=3, channel_mult=(1, 2)),
    "attention at one level": UNetConfig(attention_resolutions=(2,)),
    "attention at the narrowest level": UNetConfig(attention_resolutions=(8,), num_res_blocks=1),
    "attention in the middle only": UNetConfig(attention_resolutions=()),
    "one level": UNetConfig(channel_mult=(2,), attention_resolutions=(1,)),
    "first level wide": UNetConfig(channel_mult=(3, 1, 2), num_res_blocks=1),
    "residual resizing": UNetConfig(resblock_updown=True),
    "no temporal attention": UNetConfig(temporal_attention=False, resblock_updown=True),
    "two blocks deep": UNetConfig(transformer_depth=2, temporal_transformer_depth=3),
}


@pytest.mark.parametrize("config", PLANS.values(), ids=PLANS.keys())
def test_plan_is_the_originals_constructor(config):
    blocks = constructor.layers(config)
    plan = unet_plan(config)
    assert len(plan.input) + 1 + len(plan.output) == len(blocks)
    for ours, theirs in zip([*plan.input, plan.middle, *plan.output], blocks, strict=True):
        assert [(layer.name, layer.kind, layer.channels) for layer in ours] == [
            (layer.name, layer.kind, layer.after) for layer in theirs
        ]
    spatial = [layer.name for block in blocks for layer in block if layer.kind == "spatial"]
    depths = range(config.transformer_depth)
    assert dual_attention_names(config) == [
        f"{name}/transformer_blocks.{depth}/attn2" for name in spatial for depth in depths
    ]
    firsts = [layer.index for layer in plan.layers if layer.kind == "spatial"]
    assert firsts == [config.transformer_depth * i for i in range(len(spatial))]


def test_released_model_has_sixteen_dual_layers():
    names = dual_attention_names(UNetConfig())
    assert len(names) == 16
    assert names[0] == "input_blocks.1.1/transformer_blocks.0/attn2"
    assert names[6] == "middle_block.1/transformer_blocks.0/attn2"


@pytest.mark.parametrize(
    "changes",
    [
        {"channel_mult": (3, 1, 2), "num_res_blocks": 2, "resblock_updown": True},
        {"channel_mult": (1, 2), "num_res_blocks": 3, "use_scale_shift_norm": True},
    ],
)
def test_residual_blocks_have_the_originals_channels(changes):
    config = modified(TINY, **changes)
    x = jnp.zeros((1, 1, 4, 4, 4))
    shapes = shapes_of(UNetVideo(config=config), x, T[:1], TEXT[:1], STYLE[:1])
    factor = 2 if config.use_scale_shift_norm else 1
    for layer in (layer for block in constructor.layers(config) for layer in block):
        if layer.kind.startswith("res"):
            wide = (layer.after, layer.before, 3, 3)
            assert shapes.pop(f"{layer.name}.in_layers.2.weight") == wide
            assert shapes.pop(f"{layer.name}.emb_layers.1.bias") == (factor * layer.after,)
            skip = shapes.pop(f"{layer.name}.skip_connection.weight", None)
            changed = layer.before != layer.after
            assert skip == ((layer.after, layer.before, 1, 1) if changed else None)
    assert not any("in_layers.2.weight" in name for name in shapes)


WHOLE = {
    "every option of the residual blocks": (
        {
            "channel_mult": (1, 2), "attention_resolutions": (2,), "use_linear": False,
            "num_heads": 2, "num_head_channels": -1, "addition_attention": False,
            "use_scale_shift_norm": True, "resblock_updown": True, "fps_cond": True,
            "temporal_conv": True, "tempspatial_aware": True, "use_causal_attention": True,
        },
        True,
    ),
    "two blocks deep, temporal attention to text": (
        {
            "channel_mult": (1, 2), "conv_resample": False, "transformer_depth": 2,
            "temporal_selfatt_only": False, "temporal_length": 2, "use_causal_attention": True,
        },
        True,
    ),
    "image mode": (
        {
            "num_res_blocks": 1, "attention_resolutions": (1,), "temporal_conv": True,
            "fps_cond": True,
        },
        False,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "video"), WHOLE.values(), ids=WHOLE.keys())
def test_unusual_networks_are_the_originals(original, changes, video):
    config = modified(TINY, **changes)
    module = UNetVideo(config=config)
    variables, state = fill(module, X, T, TEXT, STYLE)
    scale = jnp.abs(normal(3, 2, len(dual_attention_names(config))))
    fps = jnp.array([8.0, 24.0]) if config.fps_cond else None
    wanted = original.apply(
        original.unet, state, X, T, TEXT, STYLE, scale, config=config, fps=fps, video=video
    )
    run = jax.jit(module.apply, static_argnames="mode")
    mode = "video" if video else "image"
    found = run(variables, X, T, TEXT, STYLE, scale, fps=fps, mode=mode)
    assert_allclose(found, wanted, **MODEL)


def test_frame_rate_is_sixteen_where_none_is_given(original):
    config = modified(TINY, fps_cond=True, addition_attention=False)
    module = UNetVideo(config=config)
    variables, state = fill(module, X, T, TEXT)
    found = jax.jit(module.apply)(variables, X, T, TEXT)
    for rate in (16.0, 17.0):
        fps = jnp.full((2,), rate)
        wanted = original.apply(original.unet, state, X, T, TEXT, config=config, fps=fps)
        assert (np.abs(found - wanted).max() < 1e-4) == (rate == 16.0)


def test_features_are_added_where_the_original_adds_them(original):
    config = modified(TINY, num_res_blocks=2, addition_attention=False, temporal_attention=False)
    module = UNetVideo(config=config)
    variables, state = fill(module, X, T, TEXT)
    features = [normal(4, 2, 3, 2, 4, 64)]
    tensors = [original.torch.tensor(np.asarray(y)) for y in features]
    wanted = original.apply(original.unet, state, X, T, TEXT, config=config, features=tensors)
    found = jax.jit(module.apply)(variables, X, T, TEXT, features=features)
    assert_allclose(found, wanted, **MODEL)
    plain = original.apply(original.unet, state, X, T, TEXT, config=config)
    assert np.abs(found - plain).max() > 1e-2


def test_features_have_the_shapes_of_the_depth_adapter():
    config = modified(TINY, channel_mult=(1, 2, 4, 4), num_res_blocks=2, addition_attention=False)
    module = UNetVideo(config=config)
    x = jnp.zeros((1, 2, 8, 8, 4))
    # After the input blocks 2, 5, 8 and 11, each the last one of its level.
    sizes = ((8, 64), (4, 128), (2, 256), (1, 256))
    features = [jnp.zeros((1, 2, size, size, channels)) for size, channels in sizes]

    def shape(features):
        init = functools.partial(module.init, jax.random.key(0), x, T[:1], TEXT[:1])
        return jax.eval_shape(lambda: module.apply(init(), x, T[:1], TEXT[:1], features=features))

    assert shape(features).shape == x.shape
    with pytest.raises(ValueError, match="features: wanted 4 levels, got 3"):
        shape(features[:3])


def test_fewer_scales_than_layers_are_an_error():
    module = UNetVideo(config=TINY)
    variables, _ = fill(module, X, T, TEXT, STYLE)
    with pytest.raises(ValueError, match="style_scale: wanted 1 layers, got 0"):
        module.apply(variables, X, T, TEXT, STYLE, jnp.ones((2, 0)))


@pytest.fixture(scope="module")
def tiny():
    """The tiny UNet: its variables, and a function of its other arguments."""
    module = UNetVideo(config=TINY)
    variables, _ = fill(module, X, T, TEXT, STYLE)
    run = jax.jit(module.apply, static_argnames="mode")
    return variables, functools.partial(run, variables)


def test_image_mode_is_every_frame_alone(tiny):
    _, run = tiny
    together = run(X[:1], T[:1], TEXT[:1], STYLE[:1], mode="image")
    repeat = functools.partial(jnp.repeat, repeats=3, axis=0)
    frames = X[:1].reshape(3, 1, *X.shape[2:])
    alone = run(frames, *(repeat(y[:1]) for y in (T, TEXT, STYLE)), mode="image")
    assert_allclose(together[0], alone[:, 0], atol=1e-5)
    # A video of one frame still runs through its temporal layers.
    video = run(frames, *(repeat(y[:1]) for y in (T, TEXT, STYLE)))
    assert np.abs(video - alone).max() > 1e-2


def test_frames_of_a_video_depend_on_their_order_and_stills_do_not(tiny):
    _, run = tiny
    order = jnp.array([2, 0, 1])
    for mode in ({}, {"mode": "stills"}):
        found, wanted = run(X[:, order], T, TEXT, **mode), run(X, T, TEXT, **mode)[:, order]
        assert (np.abs(found - wanted).max() < 1e-5) == (mode != {})


def test_stills_with_temporal_attention_to_text_attend_to_themselves():
    module = UNetVideo(config=modified(TINY, temporal_selfatt_only=False))
    inputs = functools.partial(module.temporal_inputs, 3, TEXT, None)
    assert inputs("video").mask is None
    assert_allclose(inputs("stills").mask[0], np.eye(3))
    causal = UNetVideo(config=modified(TINY, use_causal_attention=True))
    assert_allclose(causal.temporal_inputs(3, TEXT, None, "video").mask[0], np.tri(3))


def test_a_batch_of_styled_and_unstyled_videos_is_each_alone(tiny):
    variables, run = tiny
    scale = jnp.array([[0.7]])
    kv = unet_context_kv(weights_of.flatten(variables["params"]), TINY, TEXT, STYLE[:1])
    given = run(X, T, TEXT, STYLE[:1], scale, kv=kv)
    styled = run(X[:1], T[:1], TEXT[:1], STYLE[:1], scale)
    plain = run(X[1:], T[1:], TEXT[1:])
    assert_allclose(given, jnp.concatenate([styled, plain]), atol=1e-5)


SHARED = {
    "released": {},
    "attention everywhere": {"attention_resolutions": (1,), "num_res_blocks": 1},
    "attention further on": {
        "attention_resolutions": (2,),
        "channel_mult": (1, 2),
        "num_res_blocks": 1,
    },
    "temporal attention to text": {"temporal_selfatt_only": False},
    "frame rate": {"fps_cond": True},
    "no attention": {"attention_resolutions": (), "num_res_blocks": 1, "channel_mult": (1,)},
}


@pytest.mark.parametrize("changes", SHARED.values(), ids=SHARED.keys())
def test_texts_that_share_their_videos_give_what_each_gives_with_its_own(changes):
    config = modified(TINY, **changes)
    module = UNetVideo(config=config)
    x, t = X, T
    texts, scale = jnp.concatenate([TEXT, 2.0 * TEXT, -TEXT]), jnp.array([[0.7], [0.2]])
    scale = jnp.tile(scale, (1, config.dual_layers))
    fps = jnp.array([8.0, 24.0]) if config.fps_cond else None
    variables, _ = fill(module, x, t, TEXT, STYLE, fps=fps)
    run = jax.jit(module.apply)
    shared = run(variables, x, t, texts, STYLE, scale, fps=fps)
    own = (jnp.tile(y, (3,) + (1,) * (y.ndim - 1)) for y in (x, t))
    rates = None if fps is None else jnp.tile(fps, 3)
    assert_allclose(shared, run(variables, *own, texts, STYLE, scale, fps=rates), atol=1e-5)
    assert np.abs(shared[:2] - shared[2:4]).max() > 1e-3


@pytest.mark.parametrize("fps", [None, jnp.array([8.0, 24.0])])
def test_time_embeddings_made_for_all_steps_are_those_of_each(fps):
    config = modified(TINY, fps_cond=fps is not None, num_res_blocks=1, use_scale_shift_norm=True)
    module = UNetVideo(config=config)
    variables, _ = fill(module, X, T, TEXT, fps=fps)
    steps = jnp.array([999.0, 400.0, 3.0])
    tables = unet_embeddings(weights_of.flatten(variables["params"]), config, steps, fps)
    run = jax.jit(module.apply)
    given = run(variables, X, jnp.zeros(2), TEXT, embeddings={k: v[1] for k, v in tables.items()})
    wanted = run(variables, X, jnp.full((2,), 400.0), TEXT, fps=fps)
    assert_allclose(given, wanted, atol=1e-5)
    other = run(variables, X, jnp.full((2,), 3.0), TEXT, fps=fps)
    assert np.abs(given - other).max() > 1e-3


def test_unstyled_videos_do_not_see_the_style_in_their_temporal_context():
    config = modified(TINY, temporal_selfatt_only=False, addition_attention=False)
    module = UNetVideo(config=config)
    variables, _ = fill(module, X, T, TEXT, STYLE)
    run = jax.jit(module.apply)
    both = run(variables, X, T, TEXT, STYLE[:1])
    assert_allclose(both[1:], run(variables, X[1:], T[1:], TEXT[1:]), atol=1e-5)


def test_scale_zero_is_no_style_and_one_is_none_given(tiny):
    _, run = tiny
    assert_allclose(run(X, T, TEXT, STYLE, jnp.zeros((2, 1))), run(X, T, TEXT), atol=1e-5)
    styled = run(X, T, TEXT, STYLE)
    assert_allclose(run(X, T, TEXT, STYLE, jnp.ones((2, 1))), styled, atol=1e-6)
    assert np.abs(styled - run(X, T, TEXT)).max() > 1e-2


@pytest.fixture(scope="module")
def differentiated(tiny):
    """Returns loss, gradients of style and middle block, and the program, for a `remat`."""
    params = tiny[0]["params"]
    middle = {name: value for name, value in params.items() if name.startswith("middle_block")}

    def gradients(remat):
        module = UNetVideo(config=modified(TINY, addition_attention=False), remat=remat)

        def loss(middle, style):
            y = module.apply({"params": {**params, **middle}}, X, T, TEXT, style)
            return jnp.square(y).mean()

        traced = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).trace(middle, STYLE)
        return traced.lower().compile()(middle, STYLE), str(traced.jaxpr)

    return functools.cache(gradients)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_computing_activations_again_changes_no_gradient(differentiated, remat):
    wanted, plain = differentiated("none")
    found, program = differentiated(remat)
    assert "remat" not in plain and "checkpoint" not in plain
    assert "remat" in program or "checkpoint" in program
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert_allclose(ours, theirs, atol=1e-6, rtol=1e-5)


def test_parameters_are_float32_whatever_the_compute_dtype():
    module = UNetVideo(config=TINY, dtype=jnp.bfloat16)
    made = jax.eval_shape(lambda: module.init(jax.random.key(0), X, T, TEXT, STYLE))
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("outermost", [1, 2, 3])
@pytest.mark.parametrize("shared", [False, True])
def test_outermost_blocks_on_a_kept_inner_part_give_what_all_blocks_give(outermost, shared):
    config = modified(TINY, num_res_blocks=1, channel_mult=(1, 2), attention_resolutions=(1,))
    module = UNetVideo(config=config)
    text = jnp.concatenate([TEXT, -TEXT]) if shared else TEXT
    variables, _ = fill(module, X, T, TEXT, STYLE)
    run = jax.jit(functools.partial(module.apply, outermost=outermost))
    wanted = jax.jit(module.apply)(variables, X, T, text, STYLE)
    out, deep = run(variables, X, T, text, STYLE)
    np.testing.assert_array_equal(out, wanted)
    again, same = run(variables, X, T, text, STYLE, deep=deep)
    assert_allclose(again, wanted, atol=1e-5)
    np.testing.assert_array_equal(same, deep)
    # Another inner part gives another output: it is what enters the last blocks.
    assert np.abs(run(variables, X, T, text, STYLE, deep=-deep)[0] - wanted).max() > 1e-3


@pytest.mark.slow
def test_inner_blocks_are_not_run_where_their_outcome_is_kept():
    config = modified(TINY, num_res_blocks=1, channel_mult=(1, 2), attention_resolutions=(1,))
    module = UNetVideo(config=config)
    variables, _ = fill(module, X, T, TEXT)
    _, deep = module.apply(variables, X, T, TEXT, outermost=1)

    def total(params):
        out, _ = module.apply({"params": params}, X, T, TEXT, outermost=1, deep=deep)
        return jnp.square(out).sum()

    gradients = jax.grad(total)(variables["params"])
    used = {name for name, tree in gradients.items() if any(map(np.any, jax.tree.leaves(tree)))}
    layers = ("input_blocks.0.", "init_attn.", "output_blocks.3.", "time_embed", "out.")
    assert used == {name for name in gradients if name.startswith(layers)}
