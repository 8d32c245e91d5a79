from pathlib import Path

import pytest

from tests.parity.case import Case
from tests.parity.kinds import UnknownKind, checks

ROOT = Path(__file__).parents[2]
OWN = ROOT / "tests/parity/cases"
SHARED = ROOT.parent / "shared/parity"
FULL_SIZE = ("full_unet", "full_unet_small")
# These need pictures of the original's test set, which are not ours to copy.
WITH_PICTURES = ("clip_preprocess", "pipeline_tiny")
# The original's numbers that are too many to copy; own cases cover the same code.
MORE = ("unet_video_tiny", "ddim_image_trajectory_eta1", "ddim_style_trajectory_eta0")


@pytest.mark.parametrize("name", sorted(path.parent.name for path in OWN.glob("*/case.json")))
def test_agrees_with_the_original(name):
    results = checks(Case.load(OWN / name))
    assert results
    assert not [check for check in results if not check.passed]


@pytest.mark.parametrize(
    "name", [*WITH_PICTURES, *MORE, *(pytest.param(n, marks=pytest.mark.slow) for n in FULL_SIZE)]
)
def test_agrees_with_the_original_at_hand(name):
    folder = SHARED / "videocrafter" / name
    if not folder.is_dir():
        pytest.skip(f"{name} is too large, or not ours, to be copied, and ../shared is absent")
    results = checks(Case.load(folder))
    assert results
    assert not [check for check in results if not check.passed]


def test_unknown_kind_is_not_called_passed(tmp_path):
    with pytest.raises(UnknownKind, match="no_such_kind"):
        checks(Case(tmp_path, {"kind": "no_such_kind"}))
