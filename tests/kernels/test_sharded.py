import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from stylecrafter_jax.kernels import dual_attention, self_attention, temporal_attention
from stylecrafter_jax.kernels.sharded import BATCH_AXES, TENSOR, uneven
from stylecrafter_jax.models.attention import TemporalAttention
from stylecrafter_jax.sharding import make_mesh
from tests.collectives import sent
from tests.kernels.agreement import normals, with_gradients

ROWS, HEADS, WIDTH = 8, 2, 16


def dual(rows, impl):
    text, style = (rows, 5, WIDTH), (rows, 3, WIDTH)
    by_row = normals((rows, 12, WIDTH), text, text, style, style, (rows,))
    run = functools.partial(dual_attention.dual_attention, heads=HEADS, impl=impl)
    return run, by_row, normals((WIDTH,), (WIDTH,))


def temporal(rows, impl):
    by_row = normals(*[(rows, 4, WIDTH)] * 3)
    run = functools.partial(temporal_attention.temporal_attention, heads=HEADS, impl=impl)
    return run, by_row, normals((7, WIDTH // HEADS), (7, WIDTH // HEADS))


def spatial(rows, impl):
    run = functools.partial(self_attention.attention, impl="xla")
    return run, normals(*[(rows, 6, HEADS, WIDTH // HEADS)] * 3), []


@pytest.fixture
def mesh():
    if jax.device_count() < 8:
        pytest.skip("eight devices are not here")
    return jax.make_mesh((4, 2), BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


@pytest.mark.parametrize(
    ("operation", "impl"), [(dual, "pallas"), (temporal, "pallas"), (spatial, None)]
)
def test_each_device_works_on_its_rows_alone(mesh, operation, impl):
    run, by_row, shared = operation(ROWS, impl)
    grad = normals(by_row[0].shape)[0] + 1.0
    wanted = with_gradients(run)(*by_row, *shared, grad)
    rows, whole = (
        NamedSharding(mesh, spec) for spec in (PartitionSpec(BATCH_AXES), PartitionSpec())
    )
    placed = [*jax.device_put(by_row, rows), *jax.device_put(shared, whole)]
    with jax.set_mesh(mesh):
        forward = jax.jit(run).lower(*placed).compile()
        both = jax.jit(with_gradients(run)).lower(*placed, jax.device_put(grad, rows)).compile()
        found = both(*placed, jax.device_put(grad, rows))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    assert found[0].sharding.is_equivalent_to(rows, found[0].ndim)
    assert not sent(forward.as_text())
    # What all rows share has one gradient, the sum of theirs.
    assert set(sent(both.as_text())) <= {"all-reduce"}
    assert bool(shared) == bool(sent(both.as_text()))


@pytest.mark.parametrize("axes", [{}, {"frames": 2}, {"frames": 8}])
def test_guidance_has_a_style_for_some_rows_of_all_devices(axes):
    """As without a mesh; no device has to know which of the rows are its own."""
    if jax.device_count() < 8:
        pytest.skip("eight devices are not here")
    mesh = make_mesh(np.array(jax.devices()[:8]), **axes)
    run, (q, *text_and_style), norm = dual(ROWS, "pallas")
    text, style = text_and_style[:2], [x[:3] for x in text_and_style[2:]]
    q, grad = normals((ROWS, 16, WIDTH), (ROWS, 16, WIDTH))
    args = (q, *text, *style, *norm)
    wanted = with_gradients(run)(*args, grad)
    rows, whole = (
        NamedSharding(mesh, spec) for spec in (PartitionSpec(BATCH_AXES, "frames"), PartitionSpec())
    )
    placed = [jax.device_put(q, rows), *jax.device_put(args[1:], whole)]
    with jax.set_mesh(mesh):
        forward = jax.jit(run).lower(*placed).compile()
        found = jax.jit(with_gradients(run))(*placed, jax.device_put(grad, rows))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    assert not sent(forward.as_text())


@pytest.mark.parametrize(("operation", "impl"), [(temporal, "pallas"), (spatial, None)])
def test_each_device_works_on_its_heads_alone(operation, impl):
    if jax.device_count() < 8:
        pytest.skip("eight devices are not here")
    mesh = jax.make_mesh((4, 2), ("data", TENSOR), axis_types=(AxisType.Auto,) * 2)
    run, by_row, shared = operation(ROWS, impl)
    grad = normals(by_row[0].shape)[0] + 1.0
    wanted = with_gradients(run)(*by_row, *shared, grad)
    own, whole = (
        NamedSharding(mesh, spec) for spec in (PartitionSpec("data", None, TENSOR), PartitionSpec())
    )
    placed = [*jax.device_put(by_row, own), *jax.device_put(shared, whole)]
    with jax.set_mesh(mesh):
        forward = jax.jit(run).lower(*placed).compile()
        found = jax.jit(with_gradients(run))(*placed, jax.device_put(grad, own))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    assert found[0].sharding.is_equivalent_to(own, found[0].ndim)
    assert not sent(forward.as_text())


def test_a_kernel_over_frames_has_the_heads_of_its_device():
    if jax.device_count() < 8:
        pytest.skip("eight devices are not here")
    mesh = make_mesh(np.array(jax.devices()[:8]), frames=2, tensor=2)
    x = normals((2, 4, 4, WIDTH))[0]  # positions are split over `frames`, heads over `tensor`

    size = {"heads": HEADS, "head_dim": WIDTH // HEADS, "relative": 4}
    layer = TemporalAttention(**size, dtype=jnp.float32, impl="pallas")
    params, run = layer.init(jax.random.key(0), x), layer.apply
    wanted = run(params, x)
    with jax.set_mesh(mesh):
        program = jax.jit(run).lower(params, x).compile()
        np.testing.assert_allclose(program(params, x), wanted, atol=1e-5)
        with pytest.raises(NotImplementedError, match="1 heads on 2 devices"):
            uneven_heads = functools.partial(temporal_attention.temporal_attention, heads=1)
            rows = x.reshape(8, 4, WIDTH)
            uneven_heads(rows, rows, rows, *normals((7, WIDTH), (7, WIDTH)), impl="pallas")


def test_rows_that_do_not_divide_are_left_to_xla(mesh):
    run, by_row, shared = dual(3, None)
    wanted = run(*by_row, *shared)
    with jax.set_mesh(mesh):
        assert uneven(3) == "3 rows on 8 devices"
        np.testing.assert_allclose(jax.jit(run)(*by_row, *shared), wanted, atol=1e-5)
        with pytest.raises(NotImplementedError, match="3 rows on 8 devices"):
            jax.jit(functools.partial(run, impl="pallas"))(*by_row, *shared)
    assert jnp.all(jnp.isfinite(wanted))
