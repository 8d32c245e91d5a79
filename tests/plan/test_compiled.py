import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from stylecrafter_jax.plan.compiled import (
    bytes_by_label,
    collective_bytes,
    compile_figures,
    cycles_by_label,
)


@pytest.fixture
def split():
    if jax.device_count() < 4:
        pytest.skip("four devices are not here")
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    return lambda *spec: NamedSharding(mesh, PartitionSpec(*spec))


def figures(function, *args, **options):
    return compile_figures(jax.jit(function, **options).lower(*args), None)


def test_memory_is_that_of_arguments_and_results():
    x = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    found = figures(lambda a, b: a @ b, x, x)
    assert (found.arguments, found.results) == (2 * 16384, 16384)
    assert found.flops == pytest.approx(2 * 64**3, rel=0.01)
    assert found.bytes_accessed == pytest.approx(3 * 16384)
    assert found.collectives == {} and found.peak >= 3 * 16384
    # A donated argument's memory serves the result.
    assert figures(lambda a, b: a + b, x, x, donate_argnums=0).results == 0


def test_a_sum_over_devices_is_one_message_of_the_result(split):
    x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=split("x"))
    found = figures(lambda a: a.sum(0), x, out_shardings=split())
    assert found.collectives == {"all-reduce": 32 * 4}


def test_gathered_weights_count_in_every_turn_of_a_loop(split):
    x = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=split())
    stack = jax.ShapeDtypeStruct((5, 16, 16), jnp.float32, sharding=split(None, "x"))

    def run(x, stack):
        def body(h, w):
            return jnp.tanh(h @ jax.lax.with_sharding_constraint(w, split())), None

        return jax.lax.scan(body, x, stack)[0]

    found = figures(run, x, stack, out_shardings=split())
    # Inside the loop one layer at a time, or all of them before it: the same bytes.
    assert found.collectives == {"all-gather": 5 * 16 * 16 * 4}


def test_a_started_message_counts_once():
    trips = 'backend_config={"known_trip_count":{"n":"3"}}'
    text = """HloModule m

%body (p: (f32[4,8], f32[32,8])) -> (f32[4,8], f32[32,8]) {
  %s = (f32[4,8]{1,0}, f32[32,8]{1,0}) all-gather-start(%x), dimensions={0}
  %d = f32[32,8]{1,0} all-gather-done(%s)
}

ENTRY %main (a: f32[4,8]) -> f32[32,8] {
  %w = (f32[4,8], f32[32,8]) while(%t), condition=%c, body=%body, TRIPS
  %r = bf16[16]{0} all-reduce(%y), to_apply=%add
  %o = f32[16]{0} all-reduce(%y), replica_groups={{0},{1}}, to_apply=%add
  %n = f32[16]{0} all-reduce(%y), replica_groups=[2,1]<=[2], to_apply=%add
}
"""
    assert collective_bytes(text.replace("TRIPS", trips)) == {
        "all-gather": 3 * 32 * 8 * 4,
        "all-reduce": 32,
    }


def test_cycles_and_bytes_of_a_loop_count_in_every_turn_by_what_they_are_for():
    text = """HloModule m

%fused (p: bf16[4,8]) -> bf16[4,8] {
  %inner = bf16[4,8]{1,0} add(%p, %p), metadata={op_name="net/a/add"}
}

%body (p: (bf16[4,8], s32[])) -> (bf16[4,8], s32[]) {
  %x = bf16[4,8]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=0
  %near = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} fusion(%x), calls=%fused, metadata={op_name="net/a/mul"}, backend_config={"estimated_cycles":"70"}
  %far = f32[4,8]{1,0:T(8,128)} fusion(%near, %x), calls=%fused, metadata={op_name="net/b/dot"}, backend_config={"estimated_cycles":"100"}
}

ENTRY %main (a: f32[4,8]) -> f32[4,8] {
  %w = (bf16[4,8], s32[]) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %r = f32[4,8]{1,0} copy(%y), backend_config={"estimated_cycles":"5"}
}
"""  # noqa: E501 - as the compiler writes it

    def label(path):
        return path.split("/")[1] if path else "none"

    assert cycles_by_label(text, label) == {"a": 3 * 70, "b": 3 * 100, "none": 5}
    small, large = 4 * 8 * 2, 4 * 8 * 4
    # What lies on the chip does not move; what is not in the text is not known.
    assert bytes_by_label(text, label) == {"a": 3 * small, "b": 3 * (small + large), "none": large}
