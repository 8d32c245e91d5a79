import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from stylecrafter_jax.programs import Programs


@pytest.fixture
def traced():
    """Programs, a function, and the shapes it was traced with: one trace is one compilation."""
    shapes = []

    def double(x):
        shapes.append(x.shape)
        return 2.0 * x

    return Programs(), double, shapes


def test_one_program_serves_all_arguments_of_one_shape(traced):
    programs, double, shapes = traced
    for value in (1.0, 3.0, -2.0):
        found = programs.run("double", double, jnp.full((4,), value))
        assert_allclose(found, np.full(4, 2 * value))
    assert shapes == [(4,)]


def test_another_shape_or_type_is_another_program(traced):
    programs, double, shapes = traced
    arguments = (jnp.ones(4), jnp.ones(5), jnp.ones((4, 1)), jnp.ones(4, jnp.bfloat16))
    for x in (*arguments, *arguments):
        found = programs.run("double", double, x)
        assert found.shape == x.shape and found.dtype == x.dtype
    assert shapes == [(4,), (5,), (4, 1), (4,)]


def test_another_key_is_another_program():
    programs, x = Programs(), jnp.ones(3)
    assert_allclose(programs.run(("add", 1), lambda x: x + 1.0, x), np.full(3, 2.0))
    assert_allclose(programs.run(("add", 5), lambda x: x + 5.0, x), np.full(3, 6.0))
    assert_allclose(programs.run(("add", 1), lambda x: x + 1.0, x), np.full(3, 2.0))


def test_another_structure_is_another_program():
    programs = Programs()

    def total(tree):
        return sum(jax.tree.leaves(tree)) + (10.0 if isinstance(tree, dict) else 0.0)

    x = jnp.ones(2)
    assert_allclose(programs.run("total", total, [x, x]), np.full(2, 2.0))
    assert_allclose(programs.run("total", total, {"a": x, "b": x}), np.full(2, 12.0))
    assert_allclose(programs.run("total", total, [x, x]), np.full(2, 2.0))


def test_absent_arguments_are_part_of_the_structure():
    programs, x = Programs(), jnp.ones(2)

    def maybe(x, y):
        return x if y is None else x + y

    assert_allclose(programs.run("maybe", maybe, x, None), np.ones(2))
    assert_allclose(programs.run("maybe", maybe, x, x), np.full(2, 2.0))
    assert_allclose(programs.run("maybe", maybe, x, None), np.ones(2))


def test_numpy_and_keys_serve_as_arguments(traced):
    programs, double, shapes = traced
    assert_allclose(programs.run("double", double, np.ones(3, np.float32)), np.full(3, 2.0))
    assert_allclose(programs.run("double", double, jnp.ones(3)), np.full(3, 2.0))
    assert shapes == [(3,)]
    draw = lambda key: jax.random.normal(key, (2,))  # noqa: E731
    found = programs.run("draw", draw, jax.random.key(3))
    assert_allclose(found, jax.random.normal(jax.random.key(3), (2,)), rtol=1e-6)


def test_weakly_typed_scalars_share_a_program_with_arrays(traced):
    programs, double, shapes = traced
    assert programs.run("double", double, jnp.float32(2.0)) == 4.0
    assert programs.run("double", double, jnp.asarray(3.0)) == 6.0
    assert programs.run("double", double, jnp.float32(4.0)) == 8.0
    assert set(shapes) == {()}


def test_another_placement_is_another_program(traced):
    programs, double, _ = traced
    devices = jax.devices()
    if len(devices) < 2:
        pytest.skip("one device has one placement")
    mesh = jax.make_mesh((2,), ("data",), devices=devices[:2])
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x = jnp.arange(4.0)
    for placed in (x, jax.device_put(x, devices[1]), jax.device_put(x, spread), x):
        found = programs.run("double", double, placed)
        assert_allclose(found, 2.0 * np.arange(4.0))
        assert found.devices() == placed.devices()


def test_compile_time_is_counted_once(traced):
    programs, double, _ = traced
    assert programs.compile_seconds == 0.0
    programs.run("double", double, jnp.ones(7))
    once = programs.compile_seconds
    assert once > 0.0
    programs.run("double", double, jnp.zeros(7))
    assert programs.compile_seconds == once


def test_getting_a_program_compiles_without_running_it():
    programs, calls = Programs(), []

    def noted(x):
        jax.debug.callback(lambda: calls.append(1))
        return x

    program = programs.get("noted", noted, jnp.ones(2))
    jax.effects_barrier()
    assert calls == [] and programs.compile_seconds > 0.0
    jax.block_until_ready(program(jnp.ones(2)))
    jax.effects_barrier()
    assert calls == [1]


COUNTS_HITS = """
import jax, jax.numpy as jnp
from stylecrafter_jax.programs import Programs, keep_on_disk
hits = []
jax.monitoring.register_event_listener(
    lambda event, **_: hits.append(event) if event.endswith("/cache_hits") else None
)
keep_on_disk()

def layers(x):  # too long to compile for a program that is not kept
    for _ in range(400):
        x = jnp.sin(x @ x.T)
    return x

Programs().run("layers", layers, jnp.ones((8, 8)))
print(len(hits), jax.config.jax_compilation_cache_dir)
"""


def counted_hits(**variables):
    hidden = ("JAX_ENABLE_COMPILATION_CACHE", "JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    env |= {name: str(value) for name, value in variables.items()}
    ended = subprocess.run(
        [sys.executable, "-c", COUNTS_HITS], env=env, text=True, capture_output=True, check=True
    )
    assert ended.stderr == ""
    hits, folder = ended.stdout.split()
    return int(hits), folder


def test_the_next_process_finds_programs_on_disk(tmp_path):
    first, folder = counted_hits(XDG_CACHE_HOME=tmp_path)
    assert folder == str(tmp_path / "stylecrafter_jax" / "programs")
    assert first == 0 and counted_hits(XDG_CACHE_HOME=tmp_path)[0] >= 1


def test_jaxs_own_setting_and_a_folder_that_cannot_be_made_are_respected(tmp_path):
    own = tmp_path / "own"
    variables = {"JAX_COMPILATION_CACHE_DIR": own, "XDG_CACHE_HOME": tmp_path}
    assert counted_hits(**variables)[1] == str(own)
    (tmp_path / "file").write_text("")
    assert counted_hits(XDG_CACHE_HOME=tmp_path / "file") == (0, "None")
