import json

import pytest

from tests.commands.test_plan import with_libtpu
from tests.plan import budgets

BUDGETS = json.loads(budgets.FILE.read_text())
# Of the released order of work, counted alike: benchmarks/results/flops.json.
RELEASED = 1621.1e12


@pytest.mark.parametrize("where", ["cpu", pytest.param("v5e", marks=with_libtpu)])
def test_no_program_costs_more_than_its_budget(where):
    found = budgets.measured(where)
    assert found.keys() == BUDGETS[where].keys()
    over = {
        f"{name}: {figure}": (value, BUDGETS[where][name][figure])
        for name, values in found.items()
        for figure, value in values.items()
        if value > budgets.SLACK * BUDGETS[where][name][figure]
    }
    assert not over, f"(found, budget): {over}; see tests/plan/budgets.py"


def test_a_full_sample_takes_nine_tenths_of_the_released_work_and_a_fast_one_a_third():
    found = budgets.full_size()
    assert found["exact"] <= 0.9 * RELEASED and found["fast"] <= 0.35 * RELEASED
    for name, flops in found.items():
        assert flops <= 1.001 * BUDGETS["full_size_flops"][name], name
