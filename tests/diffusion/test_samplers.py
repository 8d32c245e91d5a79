import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import TypeCheckError

from stylecrafter_jax.config import ScheduleConfig
from stylecrafter_jax.diffusion import solvers
from stylecrafter_jax.diffusion.samplers import (
    SAMPLERS,
    advance,
    make_plan,
    noise_to_start,
    sample,
)
from stylecrafter_jax.diffusion.schedules import make_schedule

SCHEDULE = make_schedule(ScheduleConfig())
# So fine that rounding a timestep to a whole number does not show.
FINE = make_schedule(
    ScheduleConfig(linear_start=0.85e-5, linear_end=12e-5, timesteps=100_000, prediction="eps")
)
DATA_STD = 0.5
# While tests run, annotations are checked, and may speak before our own checks do.
REFUSALS = (ValueError, TypeCheckError)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def at_step(plan, column):
    """Returns a function of t that looks up the plan's `column`, shaped for x of rank 2."""

    def look_up(t):
        nearest = jnp.argmin(jnp.abs(jnp.asarray(plan.timesteps, jnp.float32) - t[0]))
        return jnp.asarray(column, jnp.float32)[nearest]

    return look_up


def gaussian_denoiser(plan):
    """Returns the best possible eps prediction for data N(0, DATA_STD^2)."""
    ab = plan.levels.alpha_bar[:-1]
    gain = at_step(plan, np.sqrt(1.0 - ab) / (ab * DATA_STD**2 + 1.0 - ab))
    return lambda x, t: gain(t) * x


def marginal_std(alpha_bar):
    return np.sqrt(alpha_bar * DATA_STD**2 + 1.0 - alpha_bar)


def oracle(plan, prediction, x0):
    """Returns a network that knows x0, and so also the noise in x."""
    signal, noise = (at_step(plan, col[:-1]) for col in (plan.levels.signal, plan.levels.noise))
    root = at_step(plan, np.sqrt(plan.levels.alpha_bar[:-1]))
    scale = at_step(plan, plan.levels.signal_scale[:-1])

    def denoise(x, t):
        eps = (x - signal(t) * x0) / noise(t)
        outputs = {"eps": eps, "v": root(t) * eps - noise(t) * scale(t) * x0, "x0": x0}
        return outputs[prediction]

    return denoise


@pytest.mark.parametrize(
    ("name", "order"), [("ddim", 1), ("euler", 1), ("dpmsolver++", 2), ("unipc", 3)]
)
def test_order_of_convergence(name, order):
    errors = []
    for steps in (20, 40, 80):
        # A smooth grid that ends at some noise: in steps of equal time lambda grows without bound
        # towards t = 0, where no multistep method keeps its order.
        plan = make_plan(name, FINE, steps, karras=True, clean_end=False)
        start, end = plan.levels.alpha_bar[[0, -1]]
        x = sample(gaussian_denoiser(plan), jnp.ones((1, 1)), plan)
        errors.append(abs(float(x[0, 0]) * marginal_std(start) / marginal_std(end) - 1.0))
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert np.all(orders > order - 0.15), (errors, orders)


@pytest.mark.parametrize(("name", "eta"), [("euler_ancestral", 1.0), ("ddim", 1.0), ("ddim", 0.5)])
def test_sampling_with_noise_ends_with_the_datas_variance(name, eta):
    plan = make_plan(name, SCHEDULE, 400, eta=eta, spacing="linspace", karras=True)
    x = sample(gaussian_denoiser(plan), normal(0, 8, 5000), plan, keys(8))
    # A first-order method of 400 steps is 1 % off; 40000 draws leave 0.4 % of doubt.
    np.testing.assert_allclose(np.std(x), DATA_STD, rtol=0.02)
    np.testing.assert_allclose(np.mean(x), 0.0, atol=0.01)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_network_that_knows_x0_is_followed_to_it(name, prediction):
    schedule = dataclasses.replace(SCHEDULE, prediction=prediction)
    plan = make_plan(name, schedule, 7, clean_end=True)
    x0 = normal(1, 2, 5)
    x = sample(oracle(plan, prediction, x0), normal(0, 2, 5), plan, keys(2))
    np.testing.assert_allclose(x, x0, atol=1e-4)


@pytest.mark.parametrize("prediction", ["v", "x0"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_sampling_may_start_at_pure_noise(name, prediction):
    config = ScheduleConfig(zero_terminal_snr=True, prediction=prediction)
    plan = make_plan(name, make_schedule(config), 6, spacing="trailing", clean_end=True)
    assert plan.levels.alpha_bar[0] == 0.0
    x0 = normal(1, 2, 5)
    x = sample(oracle(plan, prediction, x0), normal(0, 2, 5), plan, keys(2))
    np.testing.assert_allclose(x, x0, atol=1e-4)


def test_eps_prediction_cannot_start_at_pure_noise():
    schedule = make_schedule(ScheduleConfig(zero_terminal_snr=True))
    with pytest.raises(ValueError, match="eps prediction"):
        make_plan("euler", schedule, 6, spacing="trailing")
    assert make_plan("euler", schedule, 6, spacing="leading").levels.alpha_bar[0] > 0.0


@pytest.mark.parametrize("use_scale", [True, False])
def test_ddim_with_the_true_noise_walks_back_the_forward_process(use_scale):
    schedule = make_schedule(ScheduleConfig(use_scale=True, scale_b=0.7))
    plan = make_plan("ddim", schedule, 9, use_scale=use_scale)
    x0, noise = normal(0, 2, 5), normal(1, 2, 5)
    _, path = sample(lambda x, t: noise, noise_to_start(plan, x0, noise), plan, trajectory=True)
    visited = [*plan.timesteps[1:].astype(int), 0]
    signal = np.sqrt(np.cumprod(1.0 - schedule.betas))[visited]
    scale = np.interp(visited, [0, 399], [1.0, 0.7]) if use_scale else np.ones(len(visited))
    for i in range(plan.steps):
        wanted = signal[i] * scale[i] * x0 + np.sqrt(1.0 - signal[i] ** 2) * noise
        np.testing.assert_allclose(path.x[i], wanted, atol=1e-4)
        np.testing.assert_allclose(path.pred_x0[i], x0, atol=1e-4)


def test_euler_is_ddim_on_the_same_levels():
    euler = make_plan("euler", SCHEDULE, 12)
    ddim = make_plan("ddim", SCHEDULE, 12, spacing="leading", clean_end=True)
    x = normal(0, 1, 4)
    np.testing.assert_array_equal(
        sample(gaussian_denoiser(euler), x, euler), sample(gaussian_denoiser(ddim), x, ddim)
    )


@pytest.mark.parametrize(
    ("spacing", "steps", "wanted"),
    [
        # 16 does not divide 1000: the original takes 17 steps.
        ("uniform", 16, [993 - 62 * i for i in range(17)]),
        ("uniform", 50, [981 - 20 * i for i in range(50)]),
        # The original indexes past its table here.
        ("uniform", 3, [667, 334, 1]),
        ("leading", 3, [667, 334, 1]),
        ("trailing", 3, [999, 666, 332]),
        ("linspace", 3, [999, 499.5, 0]),
        ("linspace", 1, [999]),
    ],
)
def test_spacing_of_timesteps(spacing, steps, wanted):
    assert make_plan("ddim", SCHEDULE, steps, spacing=spacing).timesteps.tolist() == wanted


def test_karras_grid_is_even_in_the_seventh_root_of_sigma():
    for name in ("euler", "dpmsolver++"):
        roots = make_plan(name, SCHEDULE, 10, karras=True).levels.sigma[:-1] ** (1 / 7)
        np.testing.assert_allclose(np.diff(roots), np.diff(roots)[0], rtol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sample_does_not_depend_on_its_batch(name):
    plan = make_plan(name, SCHEDULE, 5, eta=SAMPLERS[name].eta and 1.0)
    x, own = normal(0, 4, 3), keys(4)
    whole = sample(gaussian_denoiser(plan), x, plan, own)
    halves = [sample(gaussian_denoiser(plan), x[i], plan, own[i]) for i in (slice(2), slice(2, 4))]
    np.testing.assert_allclose(whole, np.concatenate(halves), atol=1e-6)
    if plan.stochastic:
        other = sample(gaussian_denoiser(plan), x, plan, keys(4, seed=1))
        assert not np.allclose(whole, other, atol=1e-2)


def test_given_noise_takes_the_place_of_keys():
    plan = make_plan("ddim", SCHEDULE, 4, eta=1.0)
    x, own = normal(0, 2, 3), keys(2)
    noise = jnp.stack(
        [
            jnp.stack([jax.random.normal(jax.random.fold_in(key, i), (3,)) for key in own])
            for i in range(4)
        ]
    )
    drawn = sample(gaussian_denoiser(plan), x, plan, own)
    given = sample(gaussian_denoiser(plan), x, plan, noise=noise)
    np.testing.assert_allclose(drawn, given, atol=1e-6)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_plan_may_be_an_argument_of_a_compiled_program(eta):
    def run(x, plan):
        return sample(lambda x, t: 0.1 * x, noise_to_start(plan, x, x), plan, keys(2))

    x, plan = normal(0, 2, 3), make_plan("ddim", SCHEDULE, 4, eta=eta, strength=0.5)
    np.testing.assert_allclose(jax.jit(run)(x, plan), run(x, plan), rtol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_strength_keeps_the_last_steps(name):
    whole, half = (make_plan(name, SCHEDULE, 10, strength=s) for s in (1.0, 0.5))
    np.testing.assert_array_equal(half.timesteps, whole.timesteps[5:])
    np.testing.assert_array_equal(half.levels.alpha_bar, whole.levels.alpha_bar[5:])
    x0, noise = normal(0, 2, 5), normal(1, 2, 5)
    ab = SCHEDULE.alpha_bar[int(half.timesteps[0])]
    x = noise_to_start(half, x0, noise)
    np.testing.assert_allclose(x, np.sqrt(ab) * x0 + np.sqrt(1.0 - ab) * noise, atol=1e-6)
    assert not np.isnan(sample(oracle(half, "eps", x0), x, half, keys(2))).any()


def test_trajectory_ends_at_the_sample():
    plan = make_plan("unipc", SCHEDULE, 5)
    x = normal(0, 2, 3)
    end, path = sample(gaussian_denoiser(plan), x, plan, trajectory=True)
    assert path.x.shape == path.pred_x0.shape == (5, 2, 3)
    np.testing.assert_array_equal(end, path.x[-1])
    np.testing.assert_array_equal(end, sample(gaussian_denoiser(plan), x, plan))


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_plan_run_in_parts_gives_what_it_gives_at_once(name):
    plan, x = make_plan(name, SCHEDULE, 7), normal(4, 2, 3)
    keys = jax.random.split(jax.random.key(1), 2)
    programs = []

    @jax.jit
    def part(state, first, stop):
        programs.append(1)
        return advance(gaussian_denoiser(plan), state, plan, first, stop, keys)

    state = solvers.start(x)
    for first, stop in ((0, 1), (1, 1), (1, 5), (5, plan.steps)):
        state = part(state, first, stop)
    whole = jax.jit(lambda x: sample(gaussian_denoiser(plan), x, plan, keys))(x)
    np.testing.assert_allclose(state.x, whole, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(state.x, part(solvers.start(x), 0, plan.steps).x)
    assert len(programs) == 1


def test_parts_of_a_plan_that_adds_noise_need_keys():
    plan = make_plan("euler_ancestral", SCHEDULE, 5)
    with pytest.raises(ValueError, match="one key per sample"):
        advance(gaussian_denoiser(plan), solvers.start(jnp.ones((1, 2))), plan, 0, 5)


@pytest.mark.parametrize("devices", [1, 2])
def test_callback_reports_every_step_in_order_and_previews_some(devices):
    if devices > jax.device_count():
        pytest.skip(f"{devices} devices are not here")
    mesh = jax.make_mesh((devices,), ("data",), (AxisType.Auto,), devices=jax.devices()[:devices])
    rows = NamedSharding(mesh, PartitionSpec("data"))
    plan = make_plan("ddim", SCHEDULE, 5)
    reports = []

    def callback(step, total, pred_x0):
        reports.append((step, total, pred_x0))

    run = jax.jit(
        lambda x: sample(
            gaussian_denoiser(plan), x, plan, trajectory=True, callback=callback, preview_every=2
        )
    )
    _, path = jax.block_until_ready(run(jax.device_put(normal(0, 2, 3), rows)))
    assert [(step, total) for step, total, _ in reports] == [(i, 5) for i in range(1, 6)]
    assert [preview is not None for *_, preview in reports] == [False, True, False, True, False]
    np.testing.assert_array_equal(reports[3][2], path.pred_x0[3])


def test_without_a_callback_none_is_in_the_program():
    plan = make_plan("ddim", SCHEDULE, 5)

    def program(callback):
        run = lambda x: sample(gaussian_denoiser(plan), x, plan, callback=callback)  # noqa: E731
        return str(jax.make_jaxpr(run)(jnp.ones((1, 2))))

    assert "callback" in program(lambda *_: None)
    assert "callback" not in program(None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "plms"}, "ddim, dpmsolver.., unipc, euler, euler_ancestral"),
        ({"steps": 0}, "between 1 and 1000"),
        ({"steps": 1001}, "between 1 and 1000"),
        ({"steps": 1000, "name": "unipc"}, "fewer steps"),
        ({"spacing": "cosine"}, "spacing"),
        ({"strength": 0.0}, "strength"),
        ({"strength": 0.01}, "keeps none"),
        ({"eta": 1.5}, "eta"),
        ({"name": "euler", "eta": 1.0}, "euler adds no noise"),
    ],
)
def test_impossible_plans_are_refused(arguments, message):
    with pytest.raises(REFUSALS, match=message):
        make_plan(**({"name": "ddim", "schedule": SCHEDULE, "steps": 10} | arguments))


def test_karras_grid_needs_a_final_signal():
    schedule = make_schedule(ScheduleConfig(zero_terminal_snr=True, prediction="v"))
    with pytest.raises(ValueError, match="Karras"):
        make_plan("dpmsolver++", schedule, 10, karras=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "one key per sample"),
        ({"keys": keys(3)}, "keys"),
        ({"noise": jnp.zeros((5, 2, 3))}, "noise must have shape"),
        ({"x": jnp.zeros((2, 3), jnp.bfloat16), "keys": keys(2)}, "float32"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arguments, message):
    plan = make_plan("euler_ancestral", SCHEDULE, 4)
    with pytest.raises(REFUSALS, match=message):
        sample(**({"denoise": lambda x, t: x, "x": jnp.zeros((2, 3)), "plan": plan} | arguments))


def test_a_step_is_reported_when_it_is_done_and_not_before():
    plan = make_plan("ddim", SCHEDULE, 3)
    events = []

    def network(x, t):
        events.append("network")
        return np.asarray(x)

    def denoise(x, t):
        return jax.pure_callback(network, jax.ShapeDtypeStruct(x.shape, x.dtype), x, t)

    sample(denoise, normal(0, 1, 4), plan, callback=lambda *_: events.append("report"))
    assert events == ["network", "report"] * 3
