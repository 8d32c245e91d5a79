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
from stylecrafter_jax.sharding import on_mesh, placed, run_mesh
from tests.collectives import sent
from tests.conftest import TINY
from tests.plan import budgets

NAMES = {  # ours -> the programs of `StyleCrafter`
    "text encoder": "text",
    "image encoder": "image",
    "style tokens": "style",
    "style scales": "scale",
    "before the steps": "prepare",
    "decoder": "decode",
}


MESHES = ({"data": 2, "frames": 2}, {"fsdp": 2, "tensor": 2})


def kinds(args):
    return [(x.shape, str(x.dtype)) for x in jax.tree.leaves(args)]


def lies(x):
    """Returns where an array that goes into a program lies; None: whole on every device."""
    return x.sharding if getattr(x, "committed", False) else None


class Recorded(Programs):
    """Programs that remember what they were given, and how often they were run."""

    def __init__(self):
        super().__init__()
        self.args, self.runs, self.lies, self.texts = {}, {}, {}, {}

    def get(self, key, function, *args, **settings):
        name = key if isinstance(key, str) else key[0]
        self.args.setdefault(name, kinds(args))
        self.lies.setdefault(name, [lies(x) for x in jax.tree.leaves(args)])
        self.runs[name] = self.runs.get(name, 0) + 1
        program = super().get(key, function, *args, **settings)
        self.texts.setdefault(name, program.as_text())
        return program


def generated_and_planned(model, style_files, options, **settings):
    """What a model ran for a batch of two, and the plan of that."""
    model.programs = recorded = Recorded()
    model.generate([Request("a", style_files[:1]), Request("b", style_files[1:2])], options)
    types = {"dtype": np.float32, "param_dtype": np.float32}
    resolved = options.resolved(model.config)
    return recorded, generation(model.config, resolved, batch=2, **types, **settings)


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
    options = Options(steps=3, sampler="euler", decode_chunk=3, **changes)
    recorded, task = generated_and_planned(model, style_files, options)
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


@pytest.mark.slow
@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_a_plan_over_a_mesh_is_of_the_programs_that_generate_there(small_bundle, style_files, axes):
    if jax.device_count() < 4:
        pytest.skip("four devices are not here")
    sizes = {"data": 1, "fsdp": 1, **axes}
    mesh = run_mesh(**sizes, rows=2)
    model = StyleCrafter.load(small_bundle, mesh=mesh)
    options = Options(steps=3, sampler="euler", cache_interval=2, decode_chunk=1)
    recorded, task = generated_and_planned(model, style_files, options, parted=False, axes=axes)
    for program in task.programs:
        name = {**NAMES, "steps": "sample"}[program.name]
        assert kinds(program.args) == recorded.args[name], program.name
        with on_mesh(mesh):
            traced = program.traced(mesh)
            planned = [
                x.sharding
                for arg, layout in zip(program.args, program.layouts, strict=True)
                for x in jax.tree.leaves(placed(arg, layout, mesh))
            ]
            found = traced.lower().compile().as_text()
        for (shape, _), own, wanted in zip(
            kinds(program.args), recorded.lies[name], planned, strict=True
        ):
            whole = own is None and wanted.is_fully_replicated
            assert whole or wanted.is_equivalent_to(own, len(shape)), (program.name, shape)
        assert sent(found) == sent(recorded.texts[name]), program.name


@pytest.mark.slow
def test_three_devices_share_the_branches_of_one_video():
    """Each does what one branch alone takes, the part that they have in common included."""

    def flops(guidance, axes):
        options = Options(steps=2, guidance=guidance).resolved(TINY)
        task = generation(TINY, options, dtype="float32", param_dtype="float32")
        assert task.rows == 1
        step = [program for program in task.programs if program.name == "step"]
        return budgets.on_cpu(task._replace(programs=step), axes)["step"].flops

    three, one = Guidance(text=7.5, style=5.0), Guidance(text=1.0)
    assert flops(three, {"data": 3}) == pytest.approx(flops(one, None), rel=0.05)
