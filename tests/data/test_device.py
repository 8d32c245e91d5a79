import jax
import numpy as np
import pytest

from stylecrafter_jax.data.device import DeviceBatches
from stylecrafter_jax.data.pipeline import make_batches
from stylecrafter_jax.data.records import DataError
from tests.data.test_pipeline import Numbers, equal, stream, take


def picture(record, rng):
    return {"pixels": rng.integers(0, 256, (2, 3), dtype=np.uint8) + np.uint8(record)}


def batches(records=20, broken=(), **options):
    source = Numbers(records, broken)
    return make_batches([stream(source, 8, transform=picture)], seed=4, **options)


def host(found):
    return [{name: np.asarray(x) for name, x in batch.items()} for batch in found]


def test_arrays_lie_on_the_devices_as_asked_and_numbers_stay_on_the_host():
    mesh = jax.make_mesh((4,), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    with DeviceBatches(batches(), sharding) as found:
        batch = next(found)
    assert batch["pixels"].sharding == sharding
    assert {s.data.shape for s in batch["pixels"].addressable_shards} == {(2, 2, 3)}
    assert isinstance(batch["index"], np.ndarray) and batch["index"].dtype == np.int64


def test_prefetched_batches_are_those_of_the_pipeline():
    equal(host(take(DeviceBatches(batches()), 9)), take(batches(), 9))


@pytest.mark.parametrize("stop", [0, 1, 4])
def test_the_state_is_that_of_the_last_batch_returned(stop):
    wanted = take(batches(broken=(3,)), 10)
    first = DeviceBatches(batches(broken=(3,)), ahead=3)
    equal(host(take(first, stop)), wanted[:stop])
    state = first.get_state()
    assert state["step"] == stop
    second = DeviceBatches(batches(broken=(3,)))
    second.set_state(state)
    equal(host(take(second, 10 - stop)), wanted[stop:])
    # Closing does not lose the batches that were prepared.
    equal(host(take(first, 10 - stop)), wanted[stop:])


def test_the_end_and_errors_reach_the_consumer():
    with DeviceBatches(batches(repeat=False)) as found:
        assert len(list(found)) == 2
    with DeviceBatches(batches(broken=tuple(range(20)))) as found, pytest.raises(DataError):
        next(found)


def test_batches_from_worker_processes_outlive_the_workers():
    wanted = take(batches(), 6)
    with DeviceBatches(batches(workers=1)) as found:
        kept = [next(found) for _ in range(6)]
    equal(host(kept), wanted)
