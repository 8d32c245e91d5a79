import dataclasses

import numpy as np
import pytest

from stylecrafter_jax.config import ScheduleConfig
from stylecrafter_jax.denoiser import steps_of
from stylecrafter_jax.diffusion.guidance import Guidance
from stylecrafter_jax.diffusion.samplers import make_plan
from stylecrafter_jax.diffusion.schedules import make_schedule
from stylecrafter_jax.options import Options

SCHEDULE = make_schedule(ScheduleConfig())
# All blocks, or the outermost.
A, B = True, False


@pytest.mark.parametrize(
    ("interval", "guided", "wanted"),
    [
        (1, (0.0, 1.0), [A] * 8),
        (2, (0.0, 1.0), [A, B, A, B, A, B, A, B]),
        (3, (0.0, 1.0), [A, B, B, A, B, B, A, B]),
        (9, (0.0, 1.0), [A, B, B, B, B, B, B, B]),
        # At 751 of 1000 two more branches begin to run, at 251 they end.
        (3, (0.3, 0.8), [A, A, B, B, A, A, B, B]),
    ],
)
def test_all_blocks_run_at_first_at_intervals_and_for_new_branches(
    tiny_config, interval, guided, wanted
):
    guidance = Guidance(text=5.0, style=3.0, interval=guided)
    options = Options(steps=8, sampler="euler", cache_interval=interval, guidance=guidance)
    plan = make_plan("euler", SCHEDULE, 8)
    steps = steps_of(plan, SCHEDULE, options.resolved(tiny_config), styled=True)
    np.testing.assert_array_equal(steps.timesteps, plan.timesteps)
    assert steps.whole.tolist() == wanted


def test_the_last_blocks_may_be_all_but_the_first(tiny_config):
    Options(cache_interval=2, cache_blocks=3).resolved(tiny_config)
    for blocks in (0, 4):
        options = dataclasses.replace(Options(), cache_blocks=blocks)
        with pytest.raises(ValueError, match="cache_blocks must be between 1 and 3, got"):
            options.resolved(tiny_config)
