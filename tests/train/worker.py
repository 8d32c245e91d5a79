"""Runs `stylecrafter` as one process of several, with the toy loss if `TOY` is set."""

import os
import sys

import jax

from stylecrafter_jax import sharding
from stylecrafter_jax.cli import main
from stylecrafter_jax.train import loop
from stylecrafter_jax.train.step import make_train_step
from tests.train.conftest import QUICK, toy_loss


def toy_step(experiment, config, tx, mode):
    """A step of `toy_loss`."""
    step = make_train_step(toy_loss, tx, ema_decay=experiment.train.ema_decay)
    return jax.jit(step.__wrapped__, donate_argnames="state", compiler_options=QUICK)


if __name__ == "__main__":
    sharding.SMALLEST_SPLIT = 64
    if os.environ.get("TOY"):
        loop.build_step = toy_step
    sys.exit(main(sys.argv[1:]))
