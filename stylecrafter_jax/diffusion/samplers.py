"""Sampling: a plan made on the host, and one loop that follows it.

    plan = make_plan("dpmsolver++", schedule, 20)
    x0 = sample(denoise, noise, plan)

or, a part of the plan at a time, with one compiled program for all parts:

    state = solvers.start(noise)
    state = advance(denoise, state, plan, 0, 10)
    x0 = advance(denoise, state, plan, 10, 20).x

A plan is the timesteps in the order they are visited and a solver's table of coefficients. Neither
the plan nor `sample` knows the network: `denoise(x, t)` may be guided, sharded or a formula.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jaxtyping import Array, Float, Int, Key

from stylecrafter_jax.diffusion import solvers
from stylecrafter_jax.diffusion.schedules import NoiseSchedule
from stylecrafter_jax.diffusion.solvers import Coefficients, Levels, State, Table
from stylecrafter_jax.diffusion.timesteps import Spacing, karras_levels, levels_at, spaced

Denoise = Callable[[Array, Array], Array]
# (x, t, memory) -> (out, what the next step is given)
DenoiseWithMemory = Callable[[Array, Array, Any], tuple[Array, Any]]
Callback = Callable[[int, int, np.ndarray | None], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Sampler:
    """A solver and the conventions of the program it is known from.

    Attributes:
        solver: returns the table of coefficients.
        spacing: where the timesteps lie, unless the caller chooses.
        clean_end: end without noise, instead of at the level of timestep 0.
        eta: default share of fresh noise; None for a solver that takes none.
        multistep: drop the lowest timestep, round the others, and let a Karras grid span the whole
            schedule, as diffusers' multistep schedulers do; else a Karras grid spans the chosen
            timesteps, which may be fractional.
    """

    solver: Callable[..., Coefficients]
    spacing: Spacing
    clean_end: bool = True
    eta: float | None = None
    multistep: bool = False


SAMPLERS = {
    "ddim": _Sampler(solver=solvers.one_step, spacing="uniform", clean_end=False, eta=0.0),
    "dpmsolver++": _Sampler(solver=solvers.dpm_solver, spacing="leading", multistep=True),
    "unipc": _Sampler(solver=solvers.unipc, spacing="leading", multistep=True),
    "euler": _Sampler(solver=solvers.one_step, spacing="leading"),
    "euler_ancestral": _Sampler(solver=solvers.one_step, spacing="leading", eta=1.0),
}


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("timesteps", "levels", "coefficients"),
    meta_fields=("stochastic",),
)
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Everything about a run that does not depend on the network or the latents.

    A plan is a pytree: a compiled program takes any plan with as many steps.

    Attributes:
        timesteps: [n], given to the network, in visiting order; whole numbers, except those of
            one-step samplers with Karras or linspace spacing.
        levels: the noise level at each of them, and the one at the end.
        coefficients: the solver's table.
        stochastic: whether any step adds fresh noise.
    """

    timesteps: Table
    levels: Levels
    coefficients: Coefficients
    stochastic: bool

    @property
    def steps(self) -> int:
        """Number of network evaluations."""
        return self.timesteps.shape[0]


class Trajectory(NamedTuple):
    """The state after each step, and the estimate of x0 that the step was made with."""

    x: Float[Array, "n b ..."]
    pred_x0: Float[Array, "n b ..."]


def make_plan(
    name: str,
    schedule: NoiseSchedule,
    steps: int,
    *,
    eta: float | None = None,
    karras: bool = False,
    spacing: Spacing | None = None,
    offset: int = 1,
    clean_end: bool | None = None,
    use_scale: bool = True,
    strength: float = 1.0,
) -> Plan:
    """Returns the plan of the sampler `name`, one of `SAMPLERS`.

    Args:
        name: of a sampler.
        schedule: the model's forward process.
        steps: how many; "uniform" spacing may give more (16 give 17 of 1000 timesteps) and
            `strength` fewer.
        eta: share of fresh noise, 0 (none) to 1 (as much as in ancestral sampling).
        karras: space the levels as Karras et al. 2022, eq. 5, does.
        spacing: where the timesteps lie; None for the sampler's own.
        offset: added to the timesteps of "uniform" and "leading" spacing.
        clean_end: end without noise instead of at timestep 0; None for the sampler's own.
        use_scale: False ignores a schedule's signal scale, as the original's style sampler does.
        strength: keep this share of the steps, the last ones; for `noise_to_start`.

    Raises:
        ValueError: an argument is out of range, or the network predicts eps and the first level
            holds no signal.
    """
    sampler, eta = _checked(name, schedule, steps, eta, strength)
    if not use_scale:
        ones = np.ones_like(schedule.signal_scale)
        schedule = dataclasses.replace(schedule, signal_scale=ones)
    t = spaced(
        spacing or sampler.spacing,
        schedule.timesteps,
        steps,
        offset=offset,
        drop_lowest=sampler.multistep,
    )
    if karras:
        t, levels = karras_levels(schedule, t, whole_range=sampler.multistep)
    else:
        t = np.round(t) if sampler.multistep else t
        levels = levels_at(schedule, t)
    clean_end = sampler.clean_end if clean_end is None else clean_end
    end = (1.0, 1.0) if clean_end else (schedule.alpha_bar[0], schedule.signal_scale[0])
    kept = round(strength * len(t))
    if kept < 1:
        raise ValueError(f"strength {strength} keeps none of {len(t)} steps")
    levels = Levels(
        alpha_bar=np.append(levels.alpha_bar[-kept:], end[0]),
        signal_scale=np.append(levels.signal_scale[-kept:], end[1]),
    )
    solve = sampler.solver if eta is None else functools.partial(sampler.solver, eta=eta)
    table = solve(levels, schedule.prediction)
    stochastic = bool(np.any(table.noise != 0.0))
    return Plan(timesteps=t[-kept:], levels=levels, coefficients=table, stochastic=stochastic)


def _checked(
    name: str, schedule: NoiseSchedule, steps: int, eta: float | None, strength: float
) -> tuple[_Sampler, float | None]:
    """Returns the sampler and its eta, or says which argument is wrong."""
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}, wanted one of {', '.join(SAMPLERS)}")
    if not 1 <= steps <= schedule.timesteps:
        raise ValueError(f"steps must be between 1 and {schedule.timesteps}, got {steps}")
    if not 0.0 < strength <= 1.0:
        raise ValueError(f"strength must be above 0 and at most 1, got {strength}")
    sampler = SAMPLERS[name]
    if eta is None:
        return sampler, sampler.eta
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must be between 0 and 1, got {eta}")
    if sampler.eta is None and eta > 0.0:
        raise ValueError(f"{name} adds no noise, so eta must be 0, got {eta}")
    return sampler, None if sampler.eta is None else eta


def noise_to_start(
    plan: Plan, x0: Float[Array, "b ..."], noise: Float[Array, "b ..."]
) -> Float[Array, "b ..."]:
    """Returns `x0` noised to the plan's first level: where a plan with `strength` < 1 begins."""
    signal = jnp.asarray(plan.levels.signal[0], x0.dtype)
    return signal * x0 + jnp.asarray(plan.levels.noise[0], x0.dtype) * noise


@overload
def sample(
    denoise: Denoise,
    x: Float[Array, "b ..."],
    plan: Plan,
    keys: Key[Array, " b"] | None = ...,
    *,
    noise: Float[Array, "n b ..."] | None = ...,
    trajectory: Literal[False] = ...,
    callback: Callback | None = ...,
    preview_every: int = ...,
) -> Float[Array, "b ..."]: ...


@overload
def sample(
    denoise: Denoise,
    x: Float[Array, "b ..."],
    plan: Plan,
    keys: Key[Array, " b"] | None = ...,
    *,
    noise: Float[Array, "n b ..."] | None = ...,
    trajectory: Literal[True],
    callback: Callback | None = ...,
    preview_every: int = ...,
) -> tuple[Float[Array, "b ..."], Trajectory]: ...


def sample(
    denoise: Denoise,
    x: Float[Array, "b ..."],
    plan: Plan,
    keys: Key[Array, " b"] | None = None,
    *,
    noise: Float[Array, "n b ..."] | None = None,
    trajectory: bool = False,
    callback: Callback | None = None,
    preview_every: int = 0,
) -> Any:
    """Returns x0 of the latents `x`, and the `Trajectory` if `trajectory`.

    Args:
        denoise: `(x, t [b]) -> out`, what the schedule's prediction says; `t` is float32.
        x: latents at the plan's first level, for a whole plan N(0, 1); float32.
        plan: of `make_plan`.
        keys: one key per sample, so that a sample does not depend on the batch it is in: step i
            adds normal(fold_in(key, i)). Not needed if no step adds noise.
        noise: what to add at each step, in place of `keys`.
        trajectory: return every state as well.
        callback: called on the host as `(steps done, steps, estimate of x0 or None)`, in order.
            It runs while the program does; an exception in it stops the program.
        preview_every: send the estimate of x0 each so many steps; 0 for never.

    Raises:
        ValueError: `x`, `keys` or `noise` do not fit, or noise is needed and neither is given.
    """
    _check_arrays(x, plan, keys, noise)
    steps = plan.steps

    def body(carry, inputs):
        (i, state), (row, given) = carry, inputs
        fresh = _fresh(plan, keys, i, x) if given is None else given
        out = denoise(state.x, jnp.full(state.x.shape[:1], row.t))
        state, x0 = _step(state, out, row, fresh)
        done = i + 1 if callback is None else _report(callback, i, steps, x0, preview_every)
        return (done, state), Trajectory(state.x, x0) if trajectory else None

    carry = (jnp.int32(0), solvers.start(x))
    (_, state), path = jax.lax.scan(body, carry, (_rows(plan, x), noise), length=steps)
    return (state.x, path) if trajectory else state.x


def advance(
    denoise: Denoise,
    state: State,
    plan: Plan,
    first: int | Int[Array, ""],
    stop: int | Int[Array, ""],
    keys: Key[Array, " b"] | None = None,
) -> State:
    """Returns the state after the steps from `first` to before `stop`, both of which may be traced.

    All steps of a plan, in order and in any number of parts, give what `sample` gives.

    Args:
        denoise: see `sample`; likewise `plan` and `keys`.
        state: before step `first`; `solvers.start(x)` before step 0.
        plan: see above.
        first: number of a step.
        stop: at most the number of steps.
        keys: see above.

    Raises:
        ValueError: the latents or `keys` do not fit, or keys are needed and not given.
    """

    def without(x, t, memory):
        return denoise(x, t), memory

    return advance_with_memory(without, state, None, plan, first, stop, keys)[0]


def advance_with_memory(
    denoise: DenoiseWithMemory,
    state: State,
    memory: Any,
    plan: Plan,
    first: int | Int[Array, ""],
    stop: int | Int[Array, ""],
    keys: Key[Array, " b"] | None = None,
) -> tuple[State, Any]:
    """Returns what `advance` does, and the memory of a denoiser that hands one from step to step.

    Args:
        denoise: `(x, t, memory) -> (out, memory)`, otherwise as in `sample`.
        state: see `advance`; likewise all others.
        memory: a tree of arrays, given to the first of these steps.
        plan: see above.
        first: see above.
        stop: see above.
        keys: see above.

    Raises:
        ValueError: as `advance`.
    """
    _check_arrays(state.x, plan, keys, None)
    rows = _rows(plan, state.x)

    def body(i, carry):
        state, memory = carry
        row = jax.tree.map(lambda column: column[i], rows)
        out, memory = denoise(state.x, jnp.full(state.x.shape[:1], row.t), memory)
        return _step(state, out, row, _fresh(plan, keys, i, state.x))[0], memory

    return jax.lax.fori_loop(first, stop, body, (state, memory))


class _Row(NamedTuple):
    """What a step reads of its plan, all scalars."""

    t: Array
    coefficients: Any


def _rows(plan: Plan, x: Array) -> _Row:
    """Returns the rows of all steps, stacked."""
    table = jax.tree.map(lambda column: jnp.asarray(column, x.dtype), plan.coefficients)
    return _Row(jnp.asarray(plan.timesteps, jnp.float32), table)


def _step(
    state: State, out: Array, row: _Row, fresh: Array | None
) -> tuple[State, Float[Array, "b ..."]]:
    """Returns the state after a step, and its estimate of x0."""
    return solvers.step(state, out.astype(state.x.dtype), row.coefficients, fresh)


def _fresh(plan: Plan, keys: Array | None, i: Array, x: Array) -> Array | None:
    """Returns the noise to add at step `i`, or None where the plan adds none."""
    if keys is None or not plan.stochastic:
        return None
    draw = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))
    return draw(jax.vmap(jax.random.fold_in, (0, None))(keys, i))


def _check_arrays(x: Array, plan: Plan, keys: Array | None, noise: Array | None) -> None:
    if x.dtype not in (jnp.float32, jnp.float64):
        raise ValueError(f"latents must be float32, got {x.dtype}")
    if noise is not None and noise.shape != (plan.steps, *x.shape):
        raise ValueError(f"noise must have shape {(plan.steps, *x.shape)}, got {noise.shape}")
    if keys is not None and keys.shape != x.shape[:1]:
        raise ValueError(f"keys must be one per sample, {x.shape[:1]}, got {keys.shape}")
    if plan.stochastic and keys is None and noise is None:
        raise ValueError("this plan adds noise at its steps: pass one key per sample, or the noise")


def _report(callback: Callback, i: Array, steps: int, x0: Array, preview_every: int) -> Array:
    """Calls `callback` on the host and returns i + 1.

    The host is sent one value of the step's estimate, so that it is called when the step is done
    and not before; and it returns the next step's number, so that calls come in order on any number
    of devices, where ordered effects allow but one.
    """

    def host(i, _, x0=None):
        done = int(i) + 1
        callback(done, steps, None if x0 is None else np.asarray(x0))
        return np.int32(done)

    def send(*arrays):
        done = jnp.ravel(x0)[:1]
        return io_callback(host, jax.ShapeDtypeStruct((), jnp.int32), i, done, *arrays)

    if preview_every < 1:
        return send()
    return jax.lax.cond((i + 1) % preview_every == 0, lambda: send(x0), lambda: send())
