"""Answers to the cases of schedules and samplers: our value for every array the case has."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np

from stylecrafter_jax.config import ScheduleConfig
from stylecrafter_jax.config_json import from_dict
from stylecrafter_jax.diffusion.samplers import Plan, make_plan, sample
from stylecrafter_jax.diffusion.schedules import NoiseSchedule, add_noise, buffers, make_schedule
from tests.parity.case import Case

Answers = dict[str, np.ndarray]

# diffusers' class -> our sampler, and whether its states are in the variance-exploding frame.
SAMPLERS = {
    "EulerDiscreteScheduler": ("euler", True),
    "DPMSolverMultistepScheduler": ("dpmsolver++", False),
    "UniPCMultistepScheduler": ("unipc", False),
    "DDIMScheduler": ("ddim", False),
}
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


def schedule(case: Case) -> Answers:
    """Answers the kind `schedule`."""
    names = {field.name for field in dataclasses.fields(ScheduleConfig)}
    config = {name: value for name, value in case.config.items() if name in names}
    process = make_schedule(from_dict(ScheduleConfig, config))
    tables = buffers(process)
    if case.config.get("fix_scale_bug") and "scale_arr" in tables:
        tables["scale_arr"] = tables["scale_arr"][: process.timesteps]
    for name in case.outputs:
        if found := re.fullmatch(r"ddim(\d+)_(.+)", name):
            tables[name] = _ddim_table(process, int(found[1]), found[2])
        elif name == "q_sample":
            x0, noise, t = (jnp.asarray(case.arrays["in_" + key]) for key in ("x0", "noise", "t"))
            tables[name] = np.asarray(add_noise(process, x0, noise, t))
    return {name: tables[name] for name in case.outputs}


def _ddim_table(process: NoiseSchedule, steps: int, name: str) -> np.ndarray:
    """Returns one of the original's DDIM tables, which rise in time."""
    found = re.fullmatch(r"sigmas_eta(.+)", name)
    plan = make_plan("ddim", process, steps, eta=float(found[1]) if found else 0.0)
    alpha_bar, scale = plan.levels.alpha_bar, plan.levels.signal_scale
    tables = {
        "timesteps": plan.timesteps,
        "alphas": alpha_bar[:-1],
        "alphas_prev": alpha_bar[1:],
        "sqrt_one_minus_alphas": plan.levels.noise[:-1],
        "scale": scale[:-1],
        "scale_prev": scale[1:],
    }
    return (plan.coefficients.noise if found else tables[name])[::-1]


def samplers(case: Case) -> Answers:
    """Answers the cases of diffusers' schedulers, which carry no kind but a `module`."""
    scheduler = case.info["module"].split()[-1]
    if scheduler == "DDPMScheduler":
        return _forward(case)
    answers = {}
    for variant, config in case.config["variants"].items():
        for steps in case.config["steps"] + case.config["schedules_only"]:
            run = _run(case, SAMPLERS[scheduler], config, steps)
            answers |= {f"{variant}.n{steps}.{name}": value for name, value in run.items()}
    return {name: answers[name] for name in case.outputs}


def _run(case: Case, sampler: tuple[str, bool], config: dict, steps: int) -> Answers:
    """Returns the plan's numbers, and the linear model's states if the case has them."""
    name, exploding = sampler
    plan = make_plan(
        name,
        _schedule(config),
        steps,
        karras=config.get("use_karras_sigmas", False),
        spacing=config["timestep_spacing"],
        offset=config["steps_offset"],
        clean_end=config.get("set_alpha_to_one", True),
    )
    sigmas = plan.levels.sigma
    growth = np.sqrt(1.0 + sigmas**2) if exploding else np.ones_like(sigmas)
    # diffusers begins leading grids at unit variance of the input, and others at sigma itself.
    first = growth[0] if not exploding or config["timestep_spacing"] == "leading" else sigmas[0]
    tables = {
        "timesteps": plan.timesteps,
        "sigmas": sigmas,
        "init_noise_sigma": np.array([first]),
    }
    if steps in case.config["schedules_only"]:
        return tables
    x, eps = _states(plan, case.arrays["in_x"] * (first / growth[0]), case.arrays["in_c"])
    x_own_frame = x * growth.reshape(-1, 1, 1, 1, 1)
    return tables | {"x": x_own_frame, "eps": eps, "model_input": x[:-1]}


def _states(plan: Plan, x: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns all states and the model's outputs along the way."""
    start, offset = jnp.asarray(x, jnp.float32), jnp.asarray(c)

    def denoise(x, t):
        t = t.reshape(-1, 1, 1, 1)
        return (0.1 + 0.00085 * t) * x + 0.2 * (1.0 - t / 1000.0) * offset

    _, path = sample(denoise, start, plan, trajectory=True)
    states = jnp.concatenate([start[None], path.x])
    times = jnp.repeat(jnp.asarray(plan.timesteps, jnp.float32)[:, None], x.shape[0], axis=1)
    return np.asarray(states), np.asarray(jax.vmap(denoise)(states[:-1], times))


def _forward(case: Case) -> Answers:
    process = _schedule(case.config)
    latents, noise, t = (
        jnp.asarray(case.arrays["in_" + name]) for name in ("latents", "noise", "timesteps")
    )
    return {
        "betas": process.betas,
        "alphas_cumprod": process.alpha_bar,
        "noisy": np.asarray(add_noise(process, latents, noise, t)),
    }


def _schedule(config: dict) -> NoiseSchedule:
    """Returns the schedule of a diffusers configuration."""
    if config["beta_schedule"] != "scaled_linear":
        raise ValueError(f"wanted a scaled_linear schedule, got {config['beta_schedule']}")
    return make_schedule(
        ScheduleConfig(
            linear_start=config["beta_start"],
            linear_end=config["beta_end"],
            timesteps=config["num_train_timesteps"],
            prediction=PREDICTIONS[config["prediction_type"]],
        )
    )
