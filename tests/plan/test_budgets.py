import json
import shlex

import pytest

from stylecrafter_jax.plan.report import KEPT
from stylecrafter_jax.plan.topology import parse
from tests.commands.test_plan import planned, with_libtpu
from tests.plan import budgets

BUDGETS = json.loads(budgets.FILE.read_text())
# Of the released order of work, counted alike: benchmarks/results/flops.json.
RELEASED = 1621.1e12


@pytest.mark.parametrize(
    "where",
    [
        "cpu",
        pytest.param("v5e", marks=with_libtpu),
        pytest.param("cpu:2x2", marks=pytest.mark.slow),
        pytest.param("v5e:2x2", marks=[with_libtpu, pytest.mark.slow]),
    ],
)
def test_no_program_costs_more_than_its_budget(where):
    found = budgets.measured(where)
    assert found.keys() == BUDGETS[where].keys()
    over = {
        f"{name}: {figure}": (value, BUDGETS[where][name].get(figure, 0.0))
        for name, values in found.items()
        for figure, value in values.items()
        if value > budgets.SLACK * BUDGETS[where][name].get(figure, 0.0)
    }
    assert not over, f"(found, budget): {over}; see tests/plan/budgets.py"


def test_a_full_sample_takes_nine_tenths_of_the_released_work_and_a_fast_one_a_third():
    found = budgets.full_size()
    assert found["exact"] <= 0.9 * RELEASED and found["fast"] <= 0.35 * RELEASED
    for name, flops in found.items():
        assert flops <= 1.001 * BUDGETS["full_size_flops"][name], name


def test_the_full_size_model_fits_over_every_mesh_that_was_compiled():
    plans = budgets.planned()
    over = {
        name: plan["hbm_peak_bytes"]
        for name, plan in plans.items()
        if plan["hbm_peak_bytes"] > KEPT * parse(plan["topology"]).chip.hbm_bytes
    }
    assert not over
    axes = [{axis for axis, size in plan["mesh"].items() if size > 1} for plan in plans.values()]
    assert set().union(*axes) == {"data", "fsdp", "frames", "tensor"}
    assert {parse(plan["topology"]).chip.name for plan in plans.values()} >= {"v5e", "v5p"}


@pytest.mark.slow
@pytest.mark.parametrize("compiling", [False, pytest.param(True, marks=with_libtpu)])
def test_a_full_size_plan_holds_and_takes_what_its_budget_says(capsys, compiling):
    wanted = budgets.planned()["stage1_large_v5e"]
    arguments = shlex.split(wanted["command"])[2:] + ([] if compiling else ["--no-compile"])
    found = planned(capsys, *arguments)
    assert (found["mesh"], found["held_bytes"]) == (wanted["mesh"], wanted["held_bytes"])
    if compiling:
        assert found["hbm_peak_bytes"] <= budgets.SLACK * wanted["hbm_peak_bytes"]
        sent = found["collective_bytes_by_kind"]
        assert sum(sent.values()) <= budgets.SLACK * sum(
            wanted["collective_bytes_by_kind"].values()
        )
