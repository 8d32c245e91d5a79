import importlib.util
import json

import pytest

from stylecrafter_jax import sharding
from stylecrafter_jax.cli import main
from stylecrafter_jax.commands.plan import EXIT_DOES_NOT_FIT
from stylecrafter_jax.plan import topology
from stylecrafter_jax.plan.chips import CHIPS

WANTED = {"hbm_peak_bytes", "hbm_bytes", "flops", "bytes_accessed", "collective_bytes"}
WANTED |= {"roofline_seconds", "mfu_bound", "fits", "topology", "chips", "programs"}
with_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed (the extra tpu), which compiles for TPUs",
)


def planned(capsys, *args, status=0):
    assert main(["plan", *map(str, args), "--json"]) == status
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def small(small_bundle):
    return ("--bundle", small_bundle, "--steps", 3)


def test_a_gpu_is_planned_for_by_its_data_sheet(capsys, small):
    plan = planned(capsys, "--topology", "h200:2", *small, "--price", 3.0)
    assert plan.keys() >= WANTED and plan["compiled"] is False and plan["fits"]
    assert (plan["hbm_bytes"], plan["chips"]) == (CHIPS["h200"].hbm_bytes, 2)
    step = next(p for p in plan["programs"] if p["name"] == "step")
    assert step["times"] == 3 and step["flops"] > 0
    assert plan["flops"] == pytest.approx(sum(p["flops"] for p in plan["programs"]))
    # Every chip makes its own videos, and each costs what the chips cost meanwhile.
    assert plan["videos_per_hour"] == pytest.approx(2 * 3600 / plan["roofline_seconds"])
    assert plan["price_per_1000_videos"] == pytest.approx(6000 / plan["videos_per_hour"])
    one = planned(capsys, "--topology", "h200:1", *small)
    assert one["flops"] == pytest.approx(plan["flops"])


def test_fewer_steps_are_fewer_operations(capsys, small):
    whole, fast = (planned(capsys, "--topology", "l4", *small[:2], *o) for o in ((), ("--fast",)))
    assert fast["flops"] < 0.5 * whole["flops"]
    assert [p["times"] for p in fast["programs"] if p["name"].startswith("step")] == [13, 12]


def test_the_weights_of_the_released_model_fit_or_do_not(capsys, monkeypatch):
    monkeypatch.setitem(
        CHIPS, "tiny", CHIPS["l4"].__class__(**{**vars(CHIPS["l4"]), "hbm_bytes": 2.0**30})
    )
    plan = planned(capsys, "--topology", "tiny", "--steps", 1, status=EXIT_DOES_NOT_FIT)
    assert not plan["fits"] and plan["hbm_peak_bytes"] > 6 * 2**30


def test_the_table_names_what_is_slowest(capsys, small):
    assert main(["plan", "--topology", "a100-80:4", *map(str, small), "--price", "2"]) == 0
    out, err = capsys.readouterr()
    for text in ("generate on a100-80:4: 4 x a100-80", "fits", "decoder", "memory", "roofline"):
        assert text in out
    assert "counted, not compiled" in out and "per 1,000 videos" in out
    assert "a100-80:4: step ..." in err


def test_training_is_planned_from_its_config(capsys, small_bundle):
    args = ("--config", "configs/stage1_t2i.py", "--bundle", small_bundle)
    plan = planned(capsys, "--topology", "h100:8", *args, "--mesh", "data=4,fsdp=2")
    assert (plan["task"], plan["unit"], plan["rows"]) == ("stage1", "step", 256)
    assert plan["mesh"] == {"data": 4, "fsdp": 2, "frames": 1, "tensor": 1}
    # Nothing was compiled: a chip holds half of what is split, and small arrays whole.
    whole = plan["weights_bytes"] + plan["state_bytes"]
    assert whole / 2 < plan["hbm_peak_bytes"] == plan["held_bytes"] < whole
    half = ("--set", "data.image_batch=128")
    less = planned(capsys, "--topology", "h100:8", *args, *half)
    assert less["flops"] == pytest.approx(plan["flops"] / 2, rel=0.05)
    own = ("--set", "mesh.fsdp=2", "mesh.replicate_frozen=true")
    held = planned(capsys, "--topology", "h100:8", *args, *own)
    assert held["mesh"] == plan["mesh"]
    more = held["held_bytes"] - plan["held_bytes"]
    assert plan["weights_bytes"] / 4 < more < plan["weights_bytes"] / 2


def test_a_video_over_a_mesh_is_shared_by_its_chips(capsys, monkeypatch, small):
    monkeypatch.setattr(sharding, "SMALLEST_SPLIT", 64)
    alone = planned(capsys, "--topology", "h100:4", *small)
    shared = planned(capsys, "--topology", "h100:4", *small, "--mesh", "frames=2,tensor=2")
    assert (alone["copies"], shared["copies"]) == (4, 1)
    assert shared["mesh"] == {"data": 1, "fsdp": 1, "frames": 2, "tensor": 2}
    step, part = (
        next(p for p in plan["programs"] if p["name"] == "step") for plan in (alone, shared)
    )
    assert part["flops"] == pytest.approx(step["flops"] / 4)
    # `tensor` splits some of the weights, `frames` none.
    assert shared["weights_bytes"] / 2 < shared["held_bytes"] < shared["weights_bytes"]
    assert alone["held_bytes"] == alone["weights_bytes"]


MISTAKES = {
    "chip": (["--topology", "v9:2x2"], "unknown chip 'v9'"),
    "task without config": (
        ["--topology", "h200", "--task", "stage1"],
        "--task stage1 needs the run's config: --config configs/stage1_*.py",
    ),
    "another stage": (
        ["--topology", "h200", "--task", "stage2", "--config", "configs/stage1_t2i.py"],
        "--task stage2, but configs/stage1_t2i.py is a config of stage1",
    ),
    "settings of nothing": (
        ["--topology", "h200", "--set", "train.steps=1"],
        "--set changes a training config: give one with --config",
    ),
    "mesh": (
        ["--topology", "h200:8", "--mesh", "data=3"],
        "the mesh data=3 does not make 8 chips",
    ),
    "mesh of training": (
        ["--topology", "h200:8", "--config", "configs/stage1_t2i.py", "--mesh", "frames=3"],
        "the mesh frames=3 does not make 8 chips",
    ),
    "axis": (
        ["--topology", "h200:8", "--mesh", "model=8"],
        "a mesh is such as data=2,frames=4, of data, fsdp, frames, tensor; got 'model=8'",
    ),
    "price": (["--topology", "h200:8", "--price", "-1"], "--price must be at least 0, got -1"),
}


@pytest.mark.parametrize(("args", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line(capsys, args, message):
    assert main(["plan", *args]) == 1
    out, err = capsys.readouterr()
    assert out == "" and message in err.splitlines()[-1]


def test_without_libtpu_one_line_says_how_to_go_on(capsys, monkeypatch, small):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    assert main(["plan", "--topology", "v5e:2x2", *map(str, small), "--quiet"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "stylecrafter_jax[tpu]" in line and "--no-compile" in line
    plan = planned(capsys, "--topology", "v5e:2x2", *small, "--no-compile")
    assert plan["compiled"] is False and plan["hbm_bytes"] == 16 * 2**30


@with_libtpu
def test_programs_are_compiled_for_tpu(capsys, small):
    plan = planned(capsys, "--topology", "v5e:2x2", *small)
    counted = planned(capsys, "--topology", "v5e:2x2", *small, "--no-compile")
    assert plan["compiled"] and plan["collective_bytes"] == 0
    assert plan["hbm_peak_bytes"] > counted["hbm_peak_bytes"]
    assert plan["flops"] == pytest.approx(sum(p["flops"] for p in plan["programs"]))
    for compiled in (program["compiler"] for program in plan["programs"]):
        assert compiled["temporary"] >= 0 and compiled["code"] > 0
        assert sum(compiled["cycles"].values()) > 0 and sum(compiled["moved"].values()) > 0


@with_libtpu
def test_training_on_a_slice_is_compiled_with_its_messages(capsys, small_bundle):
    settings = ["train.accumulate=1", "data.image_batch=8", "data.height=64", "data.width=64"]
    args = ("--config", "configs/stage1_t2i.py", "--bundle", small_bundle, "--set", *settings)
    plan = planned(capsys, "--topology", "v5e:2x2", "--mesh", "fsdp=2", *args)
    assert plan["compiled"] and plan["collective_bytes_by_kind"]["all-reduce"] > 0
    assert plan["collective_bytes_by_kind"].get("all-gather", 0.0) > 0


@pytest.mark.slow
@with_libtpu
def test_generation_on_a_slice_is_compiled_with_its_messages(capsys, small):
    plan = planned(capsys, "--topology", "v5e:2x2", "--mesh", "frames=2,tensor=2", *small)
    kinds = plan["collective_bytes_by_kind"]
    # Frames change places with positions; sums over channels, and over frames, are added up.
    assert plan["compiled"] and kinds["all-to-all"] > 0 and kinds["all-reduce"] > 0
    assert plan["copies"] == 1 and plan["hbm_peak_bytes"] > plan["held_bytes"]
