"""AdamW or Muon, and their learning-rate schedules, from a config."""

import re
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from stylecrafter_jax.train.experiment import OptimizerConfig


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate at each step.

    A linear warm-up from 0 over `warmup_steps`, then `schedule`: `constant`; `linear`, from the
    full rate to `final_ratio` of it until step `decay_steps`, then constant (the original's
    LambdaLRScheduler); `cosine`, the same along half a cosine.

    Args:
        config: the optimizer.
        steps: of the run; the decay's length where `decay_steps` is None.

    Source: StyleCrafter, configs/inference_video_320_512.yaml, scheduler_config.
    """
    peak, last = config.learning_rate, config.learning_rate * config.final_ratio
    decay = max(1, (config.decay_steps or steps) - config.warmup_steps)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, last, decay),
        "cosine": lambda: optax.cosine_decay_schedule(peak, decay, config.final_ratio),
    }[config.schedule]()
    if config.warmup_steps == 0:
        return after
    warmup = optax.linear_schedule(0.0, peak, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Returns the optimizer, after clipping by the global norm if the config asks for it.

    Muon orthogonalises the momentum of `matrices`; everything else goes through AdamW with
    Nesterov momentum. The updates have AdamW's usual root mean square, so that learning rates
    carry over.

    Source: Jordan et al. 2024, Muon; Liu et al. 2025, arXiv 2502.16982, sec. 2.2.
    """
    rate, decay = learning_rate(config, steps), config.weight_decay
    optimizer = {
        "adamw": lambda: optax.adamw(
            rate, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=decay
        ),
        "muon": lambda: muon(
            rate,
            beta=config.momentum,
            weight_decay=decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            adam_weight_decay=decay,
            adam_learning_rate=rate,
            muon_weight_dimension_numbers=lambda params: matrices(params, config.not_matrices),
            consistent_rms=0.2,
        ),
    }[config.name]()
    if config.clip_norm is None:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)


def matrices(params: optax.Params, excluded: str) -> optax.Params:
    """Returns which parameters Muon treats as matrices, and how; None of all others.

    Args:
        params: by name.
        excluded: pattern of names of kernels that are left out.

    Returns:
        For every kernel of a linear layer or convolution, its input axes and its output axis.
    """

    def axes(path: tuple[Any, ...], value: jax.Array) -> Any:
        name = path[0].key
        if value.ndim < 2 or not name.endswith("/kernel") or re.search(excluded, name):
            return None
        return MuonDimensionNumbers(tuple(range(value.ndim - 1)), (value.ndim - 1,))

    # As a tree: optax also asks with parameters of AdamW's masked.
    return jax.tree.map_with_path(axes, params)
