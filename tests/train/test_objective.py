"""The loss on a small model: it falls, drops what it should, and differentiates what trains."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stylecrafter_jax import params as weights
from stylecrafter_jax.config import ScheduleConfig
from stylecrafter_jax.diffusion.schedules import make_schedule
from stylecrafter_jax.tokenizer import Tokenizer
from stylecrafter_jax.train.means import LOSS_T, SCALE
from stylecrafter_jax.train.objective import (
    EMPTY_TEXT,
    denoising,
    draw_timesteps,
    encode,
    snr_weight,
)
from stylecrafter_jax.train.stages import STAGES
from stylecrafter_jax.train.step import init_state, make_train_step, row_keys

KEY = jax.random.key(0)
KEYS = row_keys(KEY, 4)


@pytest.fixture(scope="module")
def make_loss(nets):
    features = functools.partial(encode, nets[0], scale_factor=1.0, image_size=224)
    empty = jax.jit(nets[0].encode_text)(nets[1], jnp.asarray(Tokenizer.load()([""])))

    # The batch's text has five tokens, so the empty prompt's are cut to as many.
    def short(params, batch, key):
        return features({**params, EMPTY_TEXT: empty[:, :5]}, batch, key)

    def make(**options):
        schedule = make_schedule(ScheduleConfig())
        return denoising(nets[0], schedule, short, **{"mode": "image", **options})

    return make


def test_loss_falls_on_a_constant_batch(nets, make_loss, batch):
    params = nets[1]
    trainable = weights.select(params, STAGES["base"].trainable)
    frozen = {name: value for name, value in params.items() if name not in trainable}
    step = make_train_step(make_loss(), optax.adam(3e-3), ema_decay=0.9)
    state, losses = init_state(trainable, optax.adam(3e-3)), []
    for _ in range(24):
        # Always the same noise and timestep, so that losses can be compared.
        state, metrics = step(state._replace(step=jnp.zeros((), jnp.int32)), frozen, batch, KEY)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0]


def test_rows_that_drop_their_style_are_the_base_model(nets, make_loss, batch):
    loss, params = jax.jit(make_loss()), nets[1]
    all_rows = jnp.ones(4, bool)
    dropped, _ = loss(params, {**batch, "drop_style": all_rows}, KEYS)
    without, _ = loss(params, {k: v for k, v in batch.items() if k != "image"}, KEYS)
    styled, _ = loss(params, {**batch, "drop_style": ~all_rows}, KEYS)
    np.testing.assert_allclose(dropped, without, rtol=1e-6)
    assert abs(float(styled) - float(without)) > 1e-4 * float(without)


def test_metrics_of_parts_are_those_of_the_rows_they_name(nets, make_loss, batch):
    """Rows with and without style, and the loss of four timesteps by the key of the loss."""
    loss, params = jax.jit(make_loss()), nets[1]
    dropped = jnp.array([True, False, False, True])
    _, metrics = loss(params, {**batch, "drop_style": dropped}, KEYS)
    t = draw_timesteps(jax.vmap(lambda key: jax.random.split(key, 4)[1])(KEYS), 1000)
    counts = np.histogram(t, bins=[0, 250, 500, 750, 1000])[0]
    np.testing.assert_array_equal(metrics[LOSS_T][:, 1], counts)
    np.testing.assert_allclose(jnp.sum(metrics[LOSS_T][:, 0]) / 4, metrics["unweighted_loss"], 1e-6)
    style = jax.jit(nets[0].style_tokens)(params, batch["image"])
    factors = jax.jit(nets[0].style_scale)(params, style, batch["text"])
    np.testing.assert_allclose(metrics[SCALE][:, 0], factors[1] + factors[2], rtol=1e-5)
    np.testing.assert_array_equal(metrics[SCALE][:, 1], 2.0)


def test_rows_that_drop_their_text_do_not_see_it(nets, make_loss, batch):
    loss, params = jax.jit(make_loss()), nets[1]
    flags = {"drop_text": jnp.ones(4, bool)}
    one, _ = loss(params, {**batch, **flags}, KEYS)
    other, _ = loss(params, {**batch, **flags, "text": 2.0 * batch["text"]}, KEYS)
    np.testing.assert_array_equal(one, other)
    kept, _ = loss(params, {**batch, "drop_text": ~flags["drop_text"]}, KEYS)
    assert float(kept) != float(one)


def test_frozen_kernels_get_no_gradient(nets, make_loss, batch):
    """Counted in the lowered program, before any optimisation removes what is unused."""
    params, loss = nets[1], make_loss()

    def work(pattern):
        trainable = weights.select(params, pattern) if pattern else {}
        frozen = {name: value for name, value in params.items() if name not in trainable}

        def value(trainable):
            return loss({**frozen, **trainable}, batch, KEYS)[0]

        function = jax.grad(value) if pattern else value
        jaxpr = jax.make_jaxpr(function)(trainable)
        return str(jaxpr).count("conv_general_dilated["), len(jaxpr.out_avals), len(trainable)

    forward = work("")[0]
    adapter, outputs, trainable = work(STAGES["stage1"].trainable)
    everything = work(r"^unet/|^adapter/")[0]
    kernels = sum(w.ndim >= 4 for name, w in params.items() if name.startswith("unet/"))
    assert kernels > 5
    assert outputs == trainable
    # Of a convolution the backward pass needs one more for its input, and one for its kernel.
    assert adapter <= 2 * forward
    assert everything - adapter >= kernels


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [("x0", (4.0, 0.25)), ("eps", (0.25, 1.0)), ("v", (4.0 / 17.0, 0.2))],
)
def test_min_snr_weights_by_hand(prediction, expected):
    """alpha_bar = 16/17 has snr 16, cut to gamma 4; alpha_bar = 1/5 has snr 1/4."""
    schedule = make_schedule(ScheduleConfig(prediction=prediction))
    table = np.where(np.arange(schedule.timesteps) < 500, 16 / 17, 1 / 5)
    schedule = dataclasses.replace(schedule, alpha_bar=table)
    got = snr_weight(schedule, jnp.array([0, 900]), 4.0)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    np.testing.assert_array_equal(snr_weight(schedule, jnp.array([0, 900]), None), [1.0, 1.0])


@pytest.mark.parametrize("floor", [0.0, 0.1, 1.0])
def test_no_timestep_weighs_less_than_the_floor(floor):
    schedule = make_schedule(ScheduleConfig(prediction="v", zero_terminal_snr=True))
    t = jnp.arange(schedule.timesteps)
    plain, floored = snr_weight(schedule, t, 5.0), snr_weight(schedule, t, 5.0, floor)
    assert float(plain[-1]) == 0.0  # the last step is pure noise
    np.testing.assert_array_equal(floored, np.maximum(plain, np.float32(floor)))


def test_shifted_timesteps_by_hand():
    """With shift 3 the shares 1/8, 3/8, 5/8, 7/8 become 0.3, 0.643, 0.833, 0.955."""
    plain = np.asarray(draw_timesteps(row_keys(KEY, 100), 4))
    assert set(plain) == {0, 1, 2, 3}
    expected = np.array([1, 2, 3, 3])[plain]
    np.testing.assert_array_equal(draw_timesteps(row_keys(KEY, 100), 4, 3.0), expected)


@pytest.mark.parametrize("shift", [0.2, 1.0, 5.0])
def test_shifted_timesteps_stay_in_the_schedule_and_half_lie_above_the_shifted_middle(shift):
    t = np.asarray(draw_timesteps(row_keys(KEY, 4000), 1000, shift))
    assert t.min() >= 0 and t.max() <= 999
    middle = 1000 * shift * 0.5 / (1 + (shift - 1) * 0.5)
    assert np.mean(t >= middle) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(4000))
