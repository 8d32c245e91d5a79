import numpy as np
import pytest

from stylecrafter_jax.metrics.measures import Case
from stylecrafter_jax.metrics.sheet import FRAMES, ROWS, TALLEST, sheet, shown


def flat(level, *shape):
    return np.full((*shape, 3), level, np.uint8)


def test_a_row_shows_the_reference_and_frames_from_first_to_last():
    frames = np.stack([flat(10 * i, 16, 24) for i in range(7)])
    found = sheet([Case(frames, "a", [flat(200, 32, 32)])])
    assert found.shape == (16, 24 * (1 + FRAMES), 3)
    centres = [found[8, 24 * i + 12, 0] for i in range(1 + FRAMES)]
    assert centres == [200, 0, 20, 40, 60]
    # A square reference in a wide cell has white beside it.
    assert found[8, 0, 0] == 255


def test_videos_of_other_lengths_and_sizes_share_a_sheet():
    cases = [
        Case(np.stack([flat(50, 16, 24)] * 3), "a", [flat(1, 16, 24), flat(2, 16, 24)]),
        Case(np.stack([flat(60, 32, 32)]), "b", [flat(3, 16, 24)]),
    ]
    found = sheet(cases)
    assert found.shape == (32, 24 * 4, 3)
    assert [found[8, x, 0] for x in (6, 18)] == [1, 2]
    assert [found[24, 24 * i + 12, 0] for i in range(4)] == [3, 60, 255, 255]


def test_large_frames_are_shrunk_and_many_videos_thinned():
    case = Case(np.stack([flat(50, 320, 512)] * 2), "a", [flat(1, 512, 512)])
    assert sheet([case]).shape == (TALLEST, 3 * 256, 3)
    assert shown(3) == [0, 1, 2]
    many = shown(240)
    assert len(many) == ROWS and many[0] == 0 and many[-1] == 239


@pytest.mark.parametrize("references", [1, 3, 7])
def test_any_number_of_references_fits_one_cell(references):
    frames = flat(50, 16, 24)[None]
    assert sheet([Case(frames, "a", [flat(1, 9, 9)] * references)]).shape == (16, 48, 3)
