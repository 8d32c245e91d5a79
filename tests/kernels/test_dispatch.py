"""What is asked for runs or says why not; what is left open falls back."""

import pytest

from stylecrafter_jax.kernels.dispatch import chosen, target


def test_left_open_the_fastest_that_covers_the_case_is_taken():
    assert chosen(None, fastest="pallas", missing=None) == "pallas"
    assert chosen(None, fastest="pallas", missing="5 frames") == "xla"
    assert chosen(None, fastest="xla", missing=None) == "xla"


@pytest.mark.parametrize("name", ["reference", "xla", "pallas"])
def test_what_is_asked_for_is_taken(name):
    assert chosen(name, fastest="xla", missing=None) == name


def test_pallas_says_what_it_does_not_cover():
    with pytest.raises(NotImplementedError, match="the Pallas kernel does not cover 5 frames"):
        chosen("pallas", fastest="pallas", missing="5 frames")


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="must be reference, xla, pallas or None, got 'x'"):
        chosen("x", fastest="xla", missing=None)


def test_programs_are_for_the_default_device_unless_a_mesh_says_otherwise():
    assert target() == "cpu"
