from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stylecrafter_jax.media.images import load_style_image
from tests.parity.case import Case

SHARED = Path(__file__).parents[3] / "shared"


def test_style_images_are_resized_and_cropped_as_the_case_describes():
    folder = SHARED / "parity/videocrafter/clip_preprocess"
    if not folder.is_dir():
        pytest.skip("the original's test pictures are not ours to copy, and ../shared is absent")
    for row in Case.load(folder).info["images"]:
        wanted = np.asarray(Image.open(folder / row["png"]).convert("RGB"))
        np.testing.assert_array_equal(load_style_image(SHARED / row["source"]), wanted)
