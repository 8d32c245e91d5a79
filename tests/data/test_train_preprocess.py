"""The original's caption cleaning and crop numbers, from a case of reference data."""

import json
from pathlib import Path

import numpy as np

from stylecrafter_jax.data.captions import released
from stylecrafter_jax.data.transforms import centre_offset, cover_size
from tests.parity.case import Case

FOLDER = Path(__file__).parent / "cases" / "train_preprocess"


def train_preprocess(case: Case) -> dict[str, np.ndarray]:
    """Our values for the case's outputs; the six numbers are w, h, top, left, target, target."""
    answers = {}
    for target in case.config["target_sizes"]:
        resized, numbers = [], []
        for w, h in case.inputs["sizes_wh"].tolist():
            size = cover_size(h, w, (target, target))
            resized.append(size[::-1])
            numbers.append((w, h, *centre_offset(size, (target, target)), target, target))
        answers[f"resized_wh_target{target}"] = np.array(resized, np.int32)
        answers[f"time_ids_target{target}"] = np.array(numbers, np.int32)
    return answers


def test_resized_sizes_and_crop_numbers_equal_the_originals():
    case = Case.load(FOLDER)
    answers = train_preprocess(case)
    assert answers.keys() == case.outputs.keys()
    for name, theirs in case.outputs.items():
        np.testing.assert_array_equal(answers[name], theirs)


def test_released_rules_clean_every_caption_as_the_original_does():
    pairs = json.loads((FOLDER / "captions.json").read_text())
    assert len(pairs) == 31
    assert [released(before) for before, _ in pairs] == [after for _, after in pairs]
