import numpy as np

from stylecrafter_jax.world.drawing import draw
from stylecrafter_jax.world.held_out import STYLES, cases, references
from stylecrafter_jax.world.scenes import held_out
from stylecrafter_jax.world.styles import HELD_OUT_FAMILIES


def test_ten_styles_two_of_each_family_with_opposite_hues():
    assert [style.family for style in STYLES] == [f for f in HELD_OUT_FAMILIES for _ in range(2)]
    for one, other in zip(STYLES[::2], STYLES[1::2], strict=True):
        np.testing.assert_allclose(abs(one.parameters.main - other.parameters.main), 0.5)
    pictures = references()
    assert len({picture.tobytes() for picture in pictures}) == len(pictures) == 10


def test_cases_are_combinations_that_training_never_draws():
    chosen = cases(30)
    for i, case in enumerate(chosen):
        scene = case.scene
        assert held_out(scene.content, scene.place, scene.motion)
        assert scene.style == STYLES[case.style] and case.style == i % 10
        assert scene.content in case.prompt and scene.motion in case.prompt
        assert scene.style.family not in case.prompt
    # The list begins alike, however long it is.
    assert cases(12)[:5] == chosen[:5]
    assert draw(chosen[0].scene).shape == (8, 64, 64, 3)


def test_pictures_may_be_asked_for_instead():
    for case in cases(20, pictures=True):
        assert held_out(case.scene.content, case.scene.place, "")
        assert case.scene.motion == "" and draw(case.scene).shape == (1, 64, 64, 3)
