import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stylecrafter_jax.config import ScheduleConfig
from stylecrafter_jax.diffusion.losses import denoising_loss, training_target
from stylecrafter_jax.diffusion.schedules import add_noise, buffers, make_schedule, to_x0_eps

SCALED = {"use_scale": True, "scale_b": 0.7}


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_square_roots_of_betas_are_evenly_spaced_between_the_ends():
    betas = make_schedule(ScheduleConfig()).betas
    np.testing.assert_allclose(betas[[0, -1]], [0.00085, 0.012], rtol=1e-12)
    steps = np.diff(np.sqrt(betas))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-9)


def test_zero_terminal_snr_keeps_the_start_and_ends_in_pure_noise():
    plain = make_schedule(ScheduleConfig())
    zero = make_schedule(ScheduleConfig(zero_terminal_snr=True, prediction="v"))
    assert zero.alpha_bar[-1] == 0.0 and zero.betas[-1] == 1.0
    np.testing.assert_allclose(zero.alpha_bar[0], plain.alpha_bar[0], rtol=1e-12)
    # Between the ends sqrt(alpha_bar) is an affine function of the old one.
    slope = np.diff(np.sqrt(zero.alpha_bar)) / np.diff(np.sqrt(plain.alpha_bar))
    np.testing.assert_allclose(slope, slope[0], rtol=1e-6)
    assert not any(np.isnan(table).any() for table in buffers(zero).values())


def test_posterior_tables_are_the_product_of_two_gaussians():
    schedule = make_schedule(ScheduleConfig())
    tables = buffers(schedule)
    beta, before = schedule.betas[1:], schedule.alpha_bar[:-1]
    # x_t given x_{t-1} has precision (1 - beta) / beta in x_{t-1}, which has 1 / (1 - before).
    variance = 1.0 / ((1.0 - beta) / beta + 1.0 / (1.0 - before))
    wanted = {
        "posterior_variance": variance,
        "posterior_mean_coef1": variance * np.sqrt(before) / (1.0 - before),
        "posterior_mean_coef2": variance * np.sqrt(1.0 - beta) / beta,
        "posterior_log_variance_clipped": np.log(variance),
    }
    for name, table in wanted.items():
        np.testing.assert_allclose(tables[name][1:], table, rtol=1e-5, err_msg=name)
    assert len(tables) == 12 and {table.dtype for table in tables.values()} == {np.dtype("float32")}


def test_stored_scale_has_the_excess_entries_of_the_original():
    schedule = make_schedule(ScheduleConfig(**SCALED))
    stored = buffers(schedule)["scale_arr"]
    assert stored.shape == (1400,) and schedule.signal_scale.shape == (1000,)
    np.testing.assert_allclose(stored[[0, 399, 400, -1]], [1.0, 0.7, 0.7, 0.7], rtol=1e-6)
    assert "scale_arr" not in buffers(make_schedule(ScheduleConfig()))


def test_add_noise_takes_each_samples_own_timestep():
    schedule = make_schedule(ScheduleConfig(**SCALED))
    x0, noise, t = normal(0, 3, 4, 2), normal(1, 3, 4, 2), jnp.array([0, 400, 999])
    x = add_noise(schedule, x0, noise, t)
    for i, (step, scale) in enumerate([(0, 1.0), (400, 0.7), (999, 0.7)]):
        signal = np.sqrt(np.prod(1.0 - schedule.betas[: step + 1]))
        wanted = signal * scale * x0[i] + np.sqrt(1.0 - signal**2) * noise[i]
        np.testing.assert_allclose(x[i], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("settings", [{}, SCALED, {"zero_terminal_snr": True}])
def test_the_training_target_tells_x0_and_eps(prediction, settings):
    if prediction == "eps" and settings.get("zero_terminal_snr"):
        pytest.skip("eps says nothing about x0 in pure noise")
    schedule = make_schedule(ScheduleConfig(prediction=prediction, **settings))
    x0, noise, t = normal(0, 3, 5), normal(1, 3, 5), jnp.array([5, 500, 999])
    x = add_noise(schedule, x0, noise, t)
    out = training_target(schedule, x0, noise, t)
    found_x0, found_eps = to_x0_eps(schedule, x, out, t)
    # The weakest signal here, 0.07 x 0.7, makes rounding errors 20 times as large.
    np.testing.assert_allclose(found_x0, x0, atol=2e-5)
    np.testing.assert_allclose(found_eps, noise, atol=1e-5)


def test_loss_is_the_mean_square_in_float32():
    pred = jnp.full((2, 3), 3.0, jnp.bfloat16)
    loss = denoising_loss(pred, jnp.ones((2, 3)))
    assert loss == 4.0 and loss.dtype == jnp.float32


def test_eps_prediction_of_a_schedule_without_final_signal_is_refused():
    schedule = make_schedule(ScheduleConfig(zero_terminal_snr=True))
    with pytest.raises(ValueError, match="eps prediction"):
        to_x0_eps(schedule, jnp.ones((1, 2)), jnp.ones((1, 2)), jnp.array([3]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timesteps": 0}, "timesteps"),
        ({"linear_end": 1.5}, "linear_end"),
        ({"use_scale": True, "mid_step": 1001}, "mid_step"),
        ({"zero_terminal_snr": True, "timesteps": 1}, "at least 2"),
    ],
)
def test_impossible_schedules_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(ScheduleConfig(**settings))
