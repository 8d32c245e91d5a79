"""The programs that a plan is made of are those that generation compiles."""

import jax
import numpy as np
import pytest

from stylecrafter_jax.diffusion.guidance import Guidance
from stylecrafter_jax.generate import StyleCrafter
from stylecrafter_jax.options import Options
from stylecrafter_jax.params import flatten
from stylecrafter_jax.plan.tasks import generation
from stylecrafter_jax.programs import Programs
from stylecrafter_jax.request import Request

NAMES = {  # ours -> the programs of `StyleCrafter`
    "text encoder": "text",
    "image encoder": "image",
    "style tokens": "style",
    "style scales": "scale",
    "before the steps": "prepare",
    "decoder": "decode",
}


def kinds(args):
    return [(x.shape, str(x.dtype)) for x in jax.tree.leaves(args)]


class Recorded(Programs):
    """Programs that remember what they were given, and how often they were run."""

    def __init__(self):
        super().__init__({"xla_backend_optimization_level": 0})
        self.args, self.runs = {}, {}

    def get(self, key, function, *args, donate=()):
        name = key if isinstance(key, str) else key[0]
        self.args.setdefault(name, kinds(args))
        self.runs[name] = self.runs.get(name, 0) + 1
        return super().get(key, function, *args, donate=donate)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cache_interval": 2, "guidance": Guidance(text=5.0, style=2.0)},
        {"image": True, "guidance": Guidance(text=3.0)},
    ],
)
def test_a_plan_of_generation_is_of_the_programs_that_generate(small_bundle, style_files, changes):
    model = StyleCrafter.load(small_bundle)
    model.programs = recorded = Recorded()
    options = Options(steps=3, sampler="euler", decode_chunk=3, **changes)
    model.generate([Request("a", style_files[:1]), Request("b", style_files[1:2])], options)
    task = generation(
        model.config,
        options.resolved(model.config),
        batch=2,
        dtype=np.float32,
        param_dtype=np.float32,
    )
    programs = {program.name: program for program in task.programs}
    for name, theirs in NAMES.items():
        assert kinds(programs[name].args) == recorded.args[theirs], name
        assert programs[name].times == recorded.runs[theirs], name
    # One program runs all steps, some of them in part.
    steps = [program for name, program in programs.items() if name.startswith("step")]
    steps = [program for program in steps if program.donated is not None]
    assert sum(program.times for program in steps) == 3 and recorded.runs["sample"] == 1
    assert all(kinds(program.args) == recorded.args["sample"] for program in steps)
    assert len(steps) == (2 if "cache_interval" in changes else 1)
    held = sum(value.nbytes for value in flatten(model._device).values())
    assert sum(task.held.values()) == held


def test_an_unstyled_plan_needs_no_adapter(tiny_config):
    options = Options(steps=2).resolved(tiny_config)
    task = generation(tiny_config, options, styled=False)
    assert set(task.held) == {"unet", "vae", "text_encoder"}
    names = [program.name for program in task.programs]
    assert names == ["text encoder", "before the steps", "step", "decoder"]
