import pytest

from stylecrafter_jax.plan.chips import CHIPS
from stylecrafter_jax.plan.topology import TopologyError, mesh_axes, parse


@pytest.mark.parametrize(
    ("name", "chip", "count"),
    [
        ("v5e:4x4", "v5e", 16),
        ("v5e", "v5e", 1),
        ("v5p:2x2x4", "v5p", 16),
        ("h200:8", "h200", 8),
        ("h200", "h200", 1),
    ],
)
def test_a_topology_is_a_chip_and_how_many(name, chip, count):
    topology = parse(name)
    assert (topology.chip.name, topology.count) == (chip, count)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:2x2", "unknown chip 'v9' in 'v9:2x2', wanted one of v4, v5e"),
        ("v5e:9", "v5e slices look like v5e:4x4, got 'v5e:9'"),
        ("v5p:2x2", "v5p slices look like v5p:2x4x4, got 'v5p:2x2'"),
        ("v5e:0x4", "'v5e:0x4' has no size: wanted for example v5e:4x4"),
        ("h200:2x2", "h200 slices look like h200:8, got 'h200:2x2'"),
        ("", "unknown chip '' in ''"),
    ],
)
def test_a_wrong_topology_is_named(name, message):
    with pytest.raises(TopologyError, match="^" + message.replace("(", r"\(")):
        parse(name)


def test_a_mesh_is_of_all_chips():
    pod = parse("v5e:4x8")
    assert mesh_axes(pod, {}) == {"data": 32, "fsdp": 1, "frames": 1, "tensor": 1}
    given = {"fsdp": 4, "frames": 2, "tensor": 2}
    assert mesh_axes(pod, given) == {"data": 2, **given}
    for wrong in ({"frames": 3}, {"data": 4, "fsdp": 4}):
        with pytest.raises(TopologyError, match=r"^the mesh .* does not make 32 chips$"):
            mesh_axes(pod, wrong)


def test_every_size_that_can_be_rented_is_a_topology():
    for chip in CHIPS.values():
        counts = [parse(f"{chip.name}:{size}").count for size in chip.sizes]
        assert counts == sorted(counts) and len(set(counts)) == len(counts)
