from pathlib import Path

import numpy as np
import pytest

from tests.parity import diffusion_cases
from tests.parity.case import Case, compare

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "parity"
PLACES = (ROOT / "tests/parity/cases", SHARED / "videocrafter", SHARED / "sdxl")


def load(name):
    for place in PLACES:
        if (place / name / "case.json").exists():
            return Case.load(place / name)
    pytest.skip(f"the parity case {name} is not here")


@pytest.mark.parametrize("name", ["schedule", "schedule_use_scale"])
def test_schedules_are_the_originals(name):
    case = load(name)
    ours = diffusion_cases.schedule(case)
    assert ours.keys() == case.outputs.keys()
    rule = case.info["tolerance"]
    for output, theirs in case.outputs.items():
        check = compare(output, ours[output], theirs, atol=rule["atol"], rtol=rule["rtol"])
        assert check.passed, check


@pytest.mark.parametrize(
    "name",
    [
        "sampler_euler",
        "sampler_dpmsolver_multistep",
        "sampler_unipc",
        "sampler_ddim",
        "ddpm_add_noise",
    ],
)
def test_samplers_are_the_references(name):
    case = load(name)
    ours = diffusion_cases.samplers(case)
    assert ours.keys() == case.outputs.keys()
    for output, theirs in case.outputs.items():
        if output.endswith("timesteps"):
            whole = np.all(theirs == np.round(theirs))
            np.testing.assert_allclose(ours[output], theirs, rtol=0, atol=0 if whole else 0.01)
            continue
        rule = case.info["tolerance"]["max_rel"]
        check = compare(output, ours[output], theirs, atol=0.0, rtol=rule)
        assert check.passed, check
