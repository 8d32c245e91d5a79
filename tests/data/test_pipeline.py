import dataclasses
import json
import pickle

import numpy as np
import pytest

from stylecrafter_jax.data.folders import FolderSource
from stylecrafter_jax.data.pipeline import Stream, draw_stream, make_batches, whole_weights
from stylecrafter_jax.data.records import BadRecord, DataError
from stylecrafter_jax.data.transforms import Transform
from tests.data.conftest import numbered_clip, picture


class Numbers:
    """Records 0 to n - 1, some of which cannot be read."""

    def __init__(self, count: int, broken: tuple[int, ...] = (), name: str = "numbers"):
        self.count, self.broken, self.name = count, broken, name

    def __len__(self):
        return self.count

    def id(self, index):
        return f"number {index}"

    def __getitem__(self, index):
        if index in self.broken:
            raise BadRecord("it is broken")
        return index


def number(record, rng):
    return {"number": np.int64(record), "draw": rng.random()}


def two_numbers(record, rng):
    return {"number": np.array([record, record])}


def stream(source, batch_size=4, weight=1.0, transform=number):
    return Stream(source=source, transform=transform, batch_size=batch_size, weight=weight)


def take(batches, count):
    with batches:
        return [next(batches) for _ in range(count)]


def equal(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_batches_are_a_function_of_seed_and_step():
    def batches(seed):
        return make_batches([stream(Numbers(10, broken=(3,)))], seed=seed, threads=3)

    one, two = take(batches(7), 12), take(batches(7), 12)
    equal(one, two)
    equal([batches(7)[step] for step in range(12)], one)
    assert not np.array_equal(
        [b["number"] for b in one], [b["number"] for b in take(batches(8), 12)]
    )


@pytest.mark.parametrize(("records", "batch_size"), [(24, 6), (25, 12), (5, 6)])
def test_every_epoch_shows_every_record_once_in_another_order(records, batch_size):
    batches = make_batches([stream(Numbers(records), batch_size)], seed=1)
    shown = np.concatenate([b["number"] for b in take(batches, 3 * records)])
    epochs = shown[: 3 * records].reshape(3, records).tolist()
    assert [sorted(epoch) for epoch in epochs] == 3 * [list(range(records))]
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_processes_share_the_batches_of_one(count, workers):
    def batches(index, count):
        streams = [
            stream(Numbers(10, broken=(2, 3, 9), name="a"), 12, weight=3),
            stream(Numbers(7, name="b"), 24, transform=two_numbers),
        ]
        return make_batches(
            streams,
            seed=4,
            blocks=[index],
            block_count=count,
            max_bad_rate=1.0,
            workers=workers,
        )

    alone = take(batches(0, 1), 9)
    shared = [take(batches(index, count), 9) for index in range(count)]
    for step, whole in enumerate(alone):
        parts = [own[step] for own in shared]
        equal([whole], [{name: np.concatenate([p[name] for p in parts]) for name in whole}])


def test_a_run_goes_on_in_another_number_of_processes():
    def batches(index, count):
        own = {"blocks": [index], "block_count": count}
        return make_batches([stream(Numbers(10), 4)], seed=9, **own)

    wanted = take(batches(0, 1), 8)
    first = batches(0, 1)
    equal(take(first, 3), wanted[:3])
    shared = []
    for index in (0, 1):
        own = batches(index, 2)
        own.set_state(first.get_state())
        shared.append(take(own, 5))
    for whole, *parts in zip(wanted[3:], *shared, strict=True):
        equal([whole], [{name: np.concatenate([p[name] for p in parts]) for name in whole}])


def test_a_process_may_make_parts_that_do_not_follow_each_other():
    def batches(**part):
        return make_batches([stream(Numbers(30), 8)], seed=3, **part)

    own = take(batches(blocks=[1, 3], block_count=4), 5)
    equal(own, [{n: x[[2, 3, 6, 7]] for n, x in b.items()} for b in take(batches(), 5)])
    for blocks in ([], [1, 0], [4], [0, 0]):
        with pytest.raises(ValueError, match="ascending and below 4"):
            batches(blocks=blocks, block_count=4)


def test_which_stream_a_step_takes_is_known_before_it_is_read():
    streams = [stream(Numbers(10, name="a"), weight=3), stream(Numbers(7, name="b"), 2)]
    batches = make_batches(streams, seed=1)
    sizes = [len(batch["index"]) for batch in take(batches, 12)]
    assert [(4, 2)[batches.stream_of(step)] for step in range(12)] == sizes


def test_draws_differ_between_epochs_and_between_streams():
    streams = [stream(Numbers(4, name="a")), stream(Numbers(4, name="b"))]
    drawn = take(make_batches(streams, seed=5), 6)
    assert len({float(x) for batch in drawn for x in batch["draw"]}) == 6 * 4


def test_seeds_that_follow_each_other_do_not_repeat_each_others_epochs():
    def epochs(seed):
        batches = take(make_batches([stream(Numbers(16), 16)], seed=seed), 4)
        return {tuple(b["number"].tolist()) for b in batches}

    assert not epochs(3) & epochs(4)


@pytest.mark.parametrize("stop", [0, 1, 5, 13])
def test_resumed_equals_uninterrupted(stop):
    def batches(threads):
        streams = [
            stream(Numbers(10, broken=(2, 3), name="a"), 4, weight=3),
            stream(Numbers(7, name="b"), 2, weight=1, transform=two_numbers),
        ]
        return make_batches(streams, seed=11, threads=threads, max_bad_rate=1.0)

    whole = batches(2)
    wanted = take(whole, 20)
    first = batches(2)
    equal(take(first, stop), wanted[:stop])
    state = json.loads(json.dumps(first.get_state()))
    second = batches(1)
    second.set_state(state)
    equal(take(second, 20 - stop), wanted[stop:])
    assert second.ledger.get_state() == whole.ledger.get_state()
    assert second.get_state() == whole.get_state()


def test_a_state_of_other_data_is_refused_by_name():
    state = make_batches([stream(Numbers(10))], seed=1).get_state()
    for other, name in (
        (make_batches([stream(Numbers(10))], seed=2), "seed"),
        (make_batches([stream(Numbers(11))], seed=1), "streams"),
    ):
        with pytest.raises(DataError, match=f"cannot resume the data: {name} was"):
            other.set_state(state)


def test_streams_are_mixed_by_their_exact_weights():
    streams = [
        stream(Numbers(10, name="video"), 1, weight=0.8),
        stream(Numbers(50, name="image"), 16, weight=0.2, transform=two_numbers),
    ]
    sizes = [len(batch["index"]) for batch in take(make_batches(streams, seed=0), 200)]
    for start in range(195):
        assert sorted(sizes[start : start + 5]) == [1, 1, 1, 1, 16]
    for index in range(2):  # the processes of a run agree on the kind of every batch
        double = [dataclasses.replace(s, batch_size=2 * s.batch_size) for s in streams]
        other = make_batches(double, seed=0, blocks=[index], block_count=2)
        assert [len(b["index"]) for b in take(other, 20)] == sizes[:20]
    indices = [b["index"] for b in take(make_batches(streams, seed=0), 50) if len(b["index"]) == 1]
    for epoch in range(4):
        own = np.concatenate(indices[10 * epoch :][:10])
        assert sorted(own.tolist()) == list(range(10))


@pytest.mark.parametrize("weights", [(1,), (3, 7), (1, 1, 1), (5, 3, 2, 90), (1, 10_000)])
def test_any_prefix_holds_each_stream_its_share_and_each_batch_once(weights):
    total = sum(weights)
    drawn = [draw_stream(step, weights) for step in range(min(2 * total, 3000))]
    counts = [0] * len(weights)
    for step, (which, batch) in enumerate(drawn):
        assert batch == counts[which]
        counts[which] += 1
        for count, weight in zip(counts, weights, strict=True):
            assert abs(count - (step + 1) * weight / total) < len(weights)
    if len(drawn) == 2 * total:
        assert counts == [2 * weight for weight in weights]


def test_weights_become_whole_numbers():
    assert whole_weights([0.8, 0.2]) == (4, 1)
    assert whole_weights([0.3, 0.7]) == (3, 7)
    assert whole_weights([1 / 3, 2 / 3]) == (1, 2)
    assert whole_weights([5.0]) == (1,)
    for wrong in ([1.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [1.0, 1e-9]):
        with pytest.raises(ValueError, match="weight"):
            whole_weights(wrong)


def test_a_broken_record_is_replaced_by_the_next_and_counted():
    broken = (4, 5)
    plain = make_batches([stream(Numbers(8))], seed=3)
    faulty = make_batches([stream(Numbers(8, broken))], seed=3, max_bad_rate=1.0)
    one, two = take(plain, 10), take(faulty, 10)
    for before, after in zip(one, two, strict=True):
        wanted = [6 if i in broken else i for i in before["number"].tolist()]
        assert after["number"].tolist() == after["index"].tolist() == wanted
    ledger = faulty.ledger
    # Each of five epochs meets 4 (and then 5) once, and 5 once more of itself.
    assert ledger.refused == {"numbers": 15}
    assert ledger.read == {"numbers": 40 + 15}
    assert {f.index: (f.id, f.reason) for f in ledger.quarantine["numbers"].values()} == {
        4: ("number 4", "it is broken"),
        5: ("number 5", "it is broken"),
    }
    assert ledger.summary() == (
        "numbers: 15 of 55 reads refused and replaced (2 different records)"
    )


def test_the_last_record_is_replaced_by_the_first():
    batches = make_batches([stream(Numbers(4, (3,)), 2)], seed=0, shuffle=False)
    assert [b["number"].tolist() for b in take(batches, 4)] == 2 * [[0, 1], [2, 0]]


def test_too_many_broken_records_stop_the_run_in_one_line(tmp_path):
    batches = make_batches([stream(Numbers(100, tuple(range(0, 100, 4))))], seed=0)
    with batches, pytest.raises(DataError, match="read from numbers cannot be used") as error:
        for _ in range(100):
            next(batches)
    # The share is judged as of 100 records: with one in four broken, the eleventh is too many.
    assert 10 < batches.ledger.refused["numbers"] < 15
    assert batches.ledger.read["numbers"] < 100
    assert "\n" not in str(error.value)
    batches.ledger.write(tmp_path / "quarantine.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").open()]
    assert lines[0].keys() == {"source", "index", "id", "reason"}
    assert [line["index"] for line in lines] == sorted(line["index"] for line in lines)


def test_data_that_is_all_broken_stops_at_once():
    batches = make_batches([stream(Numbers(100, tuple(range(100))))], seed=0)
    with batches, pytest.raises(DataError, match="16 records of numbers in a row cannot be used"):
        next(batches)


def test_one_epoch_ends_without_the_remainder_and_alike_on_all_processes():
    for index in range(2):
        batches = make_batches(
            [stream(Numbers(11), 4)],
            seed=0,
            blocks=[index],
            block_count=2,
            shuffle=False,
            repeat=False,
        )
        with batches:
            numbers = [b["number"].tolist() for b in batches]
        assert len(batches) == 2
        assert numbers == [[2 * index, 2 * index + 1], [2 * index + 4, 2 * index + 5]]


def test_wrong_sizes_are_one_line():
    with pytest.raises(DataError, match="must be a multiple of 3, .*, got 4"):
        make_batches([stream(Numbers(10))], seed=0, block_count=3)
    with pytest.raises(DataError, match="has 3 records, wanted at least 4"):
        make_batches([stream(Numbers(3))], seed=0, repeat=False)
    with pytest.raises(DataError, match="different names"):
        make_batches([stream(Numbers(3)), stream(Numbers(3))], seed=0)
    with pytest.raises(ValueError, match="no streams"):
        make_batches([], seed=0)


def test_worker_processes_give_the_same_batches_and_the_same_ledger(photos, tokenizer, tmp_path):
    (photos / "03.jpg").write_bytes((photos / "03.jpg").read_bytes()[:-40])
    clips = tmp_path / "clips"
    clips.mkdir()
    for i, frames in enumerate((3, 9, 12)):
        numbered_clip(clips / f"{i}.mp4", frames)
        (clips / f"{i}.txt").write_text("waves")
    small = {"tokenizer": tokenizer, "size": (16, 24), "style_short_side": 24, "style_size": 16}

    def batches(workers):
        streams = [
            Stream(
                source=FolderSource(clips),
                transform=Transform(frames=6, stride=(1, 2), **small),
                batch_size=1,
                weight=4,
            ),
            Stream(
                source=FolderSource(photos),
                transform=Transform(references=2, flip=0.5, **small),
                batch_size=4,
            ),
        ]
        return make_batches(streams, seed=2, workers=workers, max_bad_rate=0.5)

    alone, helped = batches(0), batches(2)
    wanted = take(alone, 15)
    equal(take(helped, 6), wanted[:6])
    rest = batches(0)
    rest.set_state(helped.get_state())
    equal(take(rest, 9), wanted[6:])
    assert rest.ledger.get_state() == alone.ledger.get_state()
    shapes = {x["pixels"].shape: x["style"].shape for x in wanted}
    assert shapes == {(1, 6, 16, 24, 3): (1, 1, 16, 16, 3), (4, 1, 16, 24, 3): (4, 2, 16, 16, 3)}
    assert {name: x.dtype.name for name, x in wanted[0].items()} == {
        "pixels": "uint8",
        "style": "uint8",
        "ids": "int32",
        "fps": "float32",
        "drop_text": "bool",
        "drop_style": "bool",
        "index": "int64",
    }
    reasons = {f.id: f.reason for q in alone.ledger.quarantine.values() for f in q.values()}
    assert reasons.keys() == {"0.mp4", "03.jpg"}
    assert reasons["0.mp4"] == "the video has 3 frames, wanted 6"
    assert "truncated" in reasons["03.jpg"]


def test_an_error_in_a_worker_process_is_the_same_one_line():
    batches = make_batches([stream(Numbers(20, tuple(range(20))))], seed=0, workers=1)
    with batches, pytest.raises(DataError, match="16 records of numbers in a row"):
        next(batches)


def test_streams_can_be_sent_to_workers(tokenizer, photos):
    made = stream(FolderSource(photos), transform=Transform(tokenizer=tokenizer))
    again = pickle.loads(pickle.dumps(made))
    rng = np.random.default_rng(0)
    assert again.transform(again.source[0], rng)["pixels"].shape == (1, 512, 512, 3)
    assert picture(24, 40, seed=0) == again.source[0].media
