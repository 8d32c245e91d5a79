import jax
import jax.numpy as jnp
import pytest

from stylecrafter_jax.plan.count import by_scope, count, size_of


def traced(function, *shapes):
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).trace(*args)


def convolution(padding="SAME", strides=(1, 1), **options):
    def run(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
        )

    return run


X, KERNEL = (2, 9, 7, 6), (3, 3, 6, 4)
CASES = {
    "matrices": (lambda a, b: a @ b, (5, 7), (7, 3)),
    "batched": (lambda a, b: jnp.einsum("bnme,blme->bmnl", a, b), (2, 5, 3, 4), (2, 6, 3, 4)),
    "padded": (convolution(), X, KERNEL),
    "strided": (convolution(strides=(2, 2), padding=((1, 1), (1, 1))), X, KERNEL),
    "unpadded": (convolution("VALID"), X, KERNEL),
    "spread kernel": (convolution(rhs_dilation=(2, 1)), X, KERNEL),
    "grouped": (convolution(feature_group_count=2), X, (3, 3, 3, 4)),
    "gradient": (
        jax.value_and_grad(lambda x, k: convolution(strides=(2, 2))(x, k).sum(), (0, 1)),
        X,
        KERNEL,
    ),
    "within a jit": (jax.jit(lambda a, b: a @ b), (5, 7), (7, 3)),
}


@pytest.mark.parametrize(("function", "a", "b"), CASES.values(), ids=CASES.keys())
def test_products_count_as_the_compiler_counts_them(function, a, b):
    # Lowered, before anything is simplified away.
    found = traced(function, a, b)
    compilers = found.lower().cost_analysis()["flops"]
    assert count(found.jaxpr.jaxpr).flops == pytest.approx(compilers, rel=0.02)


def test_a_loop_counts_as_often_as_it_runs_or_once():
    def run(a):
        return jax.lax.scan(lambda x, _: (x @ x, None), a, None, length=7)[0]

    jaxpr = traced(run, (4, 4)).jaxpr.jaxpr
    assert count(jaxpr).flops == 7 * 128 and count(jaxpr, loops=False).flops == 128
    # Two operands and a result of 16 numbers.
    assert count(jaxpr).bytes == 7 * 3 * 64


def test_what_each_device_does_counts_for_all():
    if jax.device_count() < 4:
        pytest.skip("four devices are not here")
    axes = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((4,), ("x",), axis_types=axes, devices=jax.devices()[:4])

    def run(x):
        rows = jax.P("x")
        split = jax.shard_map(lambda y: y @ y.T, mesh=mesh, in_specs=rows, out_specs=rows)
        return split(x)

    jaxpr = traced(run, (8, 16)).jaxpr.jaxpr
    for loops in (True, False):  # it is no loop
        assert count(jaxpr, loops=loops).flops == 4 * 2 * 2 * 2 * 16


def test_of_branches_the_dearest_counts():
    def run(x):
        return jax.lax.cond(x[0, 0] > 0, lambda y: y @ y @ y, lambda y: y @ y, x)

    assert count(traced(run, (4, 4)).jaxpr.jaxpr).flops == 256


def test_work_is_told_apart_by_scope():
    @jax.named_scope("in")
    def body(h, _):
        return h @ h, None

    def run(x):
        with jax.named_scope("outer"):
            y = jax.lax.scan(body, x, None, 3)[0]
        return y @ x

    found = by_scope(traced(run, (4, 4)).jaxpr.jaxpr, lambda path: path.strip("/"))
    assert {name: work.flops for name, work in found.items() if work.flops} == {
        "outer/in": 384,
        "": 128,
    }


def test_random_keys_have_a_size():
    assert size_of(jax.random.key(0).aval) == 8
