"""`python -m stylecrafter_jax` is `stylecrafter`."""

import sys

from stylecrafter_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
