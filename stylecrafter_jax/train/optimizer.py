"""AdamW and its learning-rate schedules, from a config."""

import optax

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
    """Returns AdamW, after clipping by the global norm if the config asks for it."""
    adamw = optax.adamw(
        learning_rate(config, steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )
    if config.clip_norm is None:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)
