import numpy as np
import pytest

from stylecrafter_jax.metrics.dino import dino_style
from stylecrafter_jax.metrics.hooks import load_hook

RED, GREEN = np.zeros((2, 4, 6, 3), np.uint8), np.zeros((1, 8, 8, 3), np.uint8)
RED[..., 0], GREEN[..., 1] = 200, 90


def colours(images):
    """Embeds images by their mean colour."""
    return images.mean(axis=(1, 2))


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes `my_hook.py` in the working folder, under a name of its own."""
    monkeypatch.chdir(tmp_path)

    def write(text, name="my_hook"):
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def test_it_is_the_cosine_with_the_references_by_the_named_function():
    assert dino_style(RED, [RED[0]], colours) == pytest.approx(1.0)
    assert dino_style(RED, [GREEN[0]], colours) == pytest.approx(0.0)
    assert dino_style(RED, [GREEN[0], RED[0]], colours) == pytest.approx(0.5**0.5)


def test_a_function_that_returns_no_vectors_is_refused():
    with pytest.raises(ValueError, match=r"shape \(\) for 2 images; wanted one vector each"):
        dino_style(RED, [RED[0]], np.mean)


def test_a_function_is_found_in_the_working_folder_and_known_by_its_text(module, monkeypatch):
    one = load_hook(f"{module('def embed(x): return 2 * x', 'hook_one')}:embed")
    assert one.function(4) == 8
    assert one.identity.startswith("hook_one:embed ")
    two = load_hook(f"{module('def embed(x): return 3 * x', 'hook_two')}:embed")
    assert one.identity.split()[1] != two.identity.split()[1]
    assert load_hook("math:sqrt").function(9.0) == 3.0


@pytest.mark.parametrize(
    "name, message",
    [
        ("numpy", "wanted module:function, got 'numpy'"),
        (":mean", "wanted module:function"),
        ("no_such_module_here:f", "cannot import no_such_module_here: ModuleNotFoundError"),
        ("math:pi", "the module math has no function pi"),
        ("math:nothing", "has no function nothing"),
    ],
)
def test_a_wrong_name_is_named(name, message):
    with pytest.raises(ValueError, match=message):
        load_hook(name)


def test_a_module_that_fails_says_why(module):
    name = module("raise RuntimeError('weights are missing')", "hook_broken")
    with pytest.raises(ValueError, match="hook_broken: RuntimeError: weights are missing"):
        load_hook(f"{name}:embed")
