from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stylecrafter_jax.media.images import load_style_image
from tests.parity import media_cases
from tests.parity.case import Case, compare

ROOT = Path(__file__).parents[2]
PLACES = (ROOT.parent / "shared/parity/videocrafter", ROOT / "tests/parity/cases")
EVAL_DATA = ROOT.parent / "shared"


def load(name):
    for place in PLACES:
        if (place / name / "case.json").exists():
            return Case.load(place / name)
    pytest.skip(f"the parity case {name} is not here")


@pytest.mark.parametrize("name", ["tokenizer", "clip_preprocess"])
def test_case_agrees_with_the_original(name):
    case = load(name)
    ours = getattr(media_cases, name)(case)
    assert ours.keys() == case.outputs.keys()
    tolerance = case.info["tolerance"]
    for output, theirs in case.outputs.items():
        half = output in media_cases.FLOAT16_OUTPUTS
        atol = tolerance["atol_float16" if half else "atol"]
        check = compare(output, ours[output], theirs, atol=atol, rtol=tolerance["rtol"])
        assert check.passed, check


def test_style_images_are_resized_and_cropped_as_the_case_describes():
    case = load("clip_preprocess")
    for row in case.info["images"]:
        source = EVAL_DATA / row["source"]
        if not source.exists():
            pytest.skip("the evaluation images are not here")
        wanted = np.asarray(Image.open(case.path / row["png"]).convert("RGB"))
        np.testing.assert_array_equal(load_style_image(source), wanted)
