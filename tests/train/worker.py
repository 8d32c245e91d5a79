"""Runs `stylecrafter` as one process of several, with the toy loss if `TOY` is set."""

import os
import sys

from stylecrafter_jax import sharding
from stylecrafter_jax.cli import main
from stylecrafter_jax.train import setup
from tests.train.conftest import toy_build_step

if __name__ == "__main__":
    sharding.SMALLEST_SPLIT = 64
    if os.environ.get("TOY"):
        setup.build_step = toy_build_step
    sys.exit(main(sys.argv[1:]))
