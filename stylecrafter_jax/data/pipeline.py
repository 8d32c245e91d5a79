"""Batches for training: drawn at random but reproducible, sharded, mixed, resumable.

Every batch is a function of (streams, seed, step): a run that starts at any step, with any number
of processes and workers, sees what an uninterrupted one saw. Each epoch shuffles the records anew;
batches run on across epochs. Of several processes each makes the rows of every batch that its
devices hold. What a record's transform draws is a function of (seed, stream, epoch, record) alone.
"""

import dataclasses
import math
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, cast

import grain
import numpy as np
from absl import flags
from grain.multiprocessing import MultiprocessingOptions

from stylecrafter_jax.data.ledger import Fault, Ledger
from stylecrafter_jax.data.records import BadRecord, DataError
from stylecrafter_jax.data.sources import Source

Example = dict[str, np.ndarray | np.generic]
Batch = dict[str, np.ndarray]
_Drawn = tuple[str, list[Fault], Batch]
# So many records in a row may be unusable; a longer run of them means broken data.
ATTEMPTS = 16
# Raised when a seed comes to mean another order.
ORDER = 2
# Weights are taken as fractions with at most this denominator.
FINEST_WEIGHT = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream:
    """One kind of batch.

    Attributes:
        source: its records.
        transform: `(record, generator) -> example`, arrays by name; raises `BadRecord`. It must be
            picklable, and draw from nothing but the generator.
        batch_size: examples per batch over all processes together.
        weight: how often its batches come, relative to the other streams' weights.
        variants: passes of the source that show the same records in the same order; epoch e takes
            pass e modulo this.
    """

    source: Source
    transform: Callable[[Any, np.random.Generator], Example]
    batch_size: int
    weight: float | int = 1
    variants: int = 1

    @property
    def records(self) -> int:
        """Number of records of an epoch."""
        return len(self.source) // self.variants

    def place(self, epoch: int, index: int) -> int:
        """Returns where the source has a record for an epoch."""
        return epoch % self.variants * self.records + index

    def example(self, number: int, seed: int, epoch: int, index: int) -> Example:
        """Returns the example that a record gives in an epoch, where this is stream `number`.

        Raises:
            BadRecord: the record cannot be used.
        """
        rng = np.random.default_rng([seed, number, epoch, index])
        return self.transform(self.source[self.place(epoch, index)], rng)


def make_batches(
    streams: Sequence[Stream],
    *,
    seed: int,
    blocks: Sequence[int] = (0,),
    block_count: int = 1,
    shuffle: bool = True,
    repeat: bool = True,
    workers: int = 0,
    threads: int = 2,
    max_bad_rate: float = 0.1,
) -> "Batches":
    """Returns this process's part of every batch.

    A batch holds the example's arrays with a leading axis, and `index` (int64), the records'
    numbers in their source. It is of one stream: a fixed pattern, the same on all processes, in
    which stream i has exactly its share w_i of every sum(w) batches (weights as whole numbers). A
    record that cannot be used is replaced by the next one of its source, and listed in the ledger
    of the process that read it; above `max_bad_rate`, or after 16 in a row, iteration raises
    `DataError`.

    Args:
        streams: what to draw from.
        seed: of order and transforms; at least 0.
        blocks: which of the `block_count` equal parts of a batch this process makes, ascending.
        block_count: parts of a batch.
        shuffle: otherwise records come in order.
        repeat: epochs follow without end; otherwise one, without what fills no whole batch.
        workers: processes that prepare batches; 0 uses threads of this one, which is enough where
            decoding dominates, since decoders release the interpreter's lock.
        threads: per process; each prepares one batch at a time, and as many wait ready.
        max_bad_rate: share of the records read from a source that may be refused.

    Raises:
        DataError: a source is too small, or batch sizes do not divide.
    """
    if not blocks or list(blocks) != sorted(set(blocks) & set(range(block_count))):
        raise ValueError(f"blocks must be ascending and below {block_count}, got {blocks}")
    if not streams:
        raise ValueError("there are no streams to draw from")
    names = [stream.source.name for stream in streams]
    if len(set(names)) < len(names):
        raise DataError(f"sources must have different names, got {', '.join(names)}")
    part = (tuple(blocks), block_count)
    datasets = [
        _dataset(stream, number, seed=seed, part=part, shuffle=shuffle, repeat=repeat)
        for number, stream in enumerate(streams)
    ]
    mix = _Mix(datasets, whole_weights([stream.weight for stream in streams]))
    identity = {
        "seed": seed,
        "order": ORDER,
        "shuffle": shuffle,
        "repeat": repeat,
        "streams": [[s.source.name, s.records, s.batch_size, s.weight] for s in streams],
    }
    return Batches(
        grain.MapDataset.select_from_datasets(datasets, mix),
        mix,
        [stream.source for stream in streams],
        Ledger(max_bad_rate),
        identity,
        workers=workers,
        threads=threads,
    )


class Batches:
    """An iterator over batches that can be put to any step; close it to stop its workers.

    Attributes:
        ledger: what was read and refused so far.
        step: number of the next batch.
    """

    def __init__(
        self,
        dataset: grain.MapDataset,
        mix: "_Mix",
        sources: Sequence[Source],
        ledger: Ledger,
        identity: dict[str, Any],
        *,
        workers: int,
        threads: int,
    ):
        if workers < 0 or threads < 1:
            raise ValueError(f"wanted workers >= 0 and threads >= 1, got {workers}, {threads}")
        self.ledger = ledger
        self.step = 0
        self._dataset, self._mix, self._identity = dataset, mix, identity
        self._sources = sources
        self._workers, self._threads = workers, threads
        self._running: grain.DatasetIterator | None = None

    def __len__(self) -> int:
        """Returns the number of batches of all steps; `sys.maxsize` if they repeat."""
        return len(self._dataset)

    def __getitem__(self, step: int) -> Batch:
        """Returns the batch of any step, made here and now; changes neither step nor ledger."""
        if not 0 <= step < len(self):
            raise IndexError(f"there is no batch {step}")
        _, _, batch = cast(_Drawn, self._dataset[step])
        return batch

    def stream_of(self, step: int) -> int:
        """Returns the number of the stream that gives the batch of a step."""
        return self._mix[step][0]

    def names_of(self, step: int, index: Iterable[int]) -> tuple[str, list[str]]:
        """Returns the source of a step's batch, and the ids of records of it by their numbers."""
        source = self._sources[self.stream_of(step)]
        return source.name, [source.id(number) for number in index]

    def some_names(self, count: int = 64) -> list[list[str]]:
        """Returns the ids of some records of each source, by which other data are known."""
        return [
            [source.id(number) for number in range(0, len(source), -(-len(source) // count))]
            for source in self._sources
        ]

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self.step >= len(self):
            raise StopIteration
        if self._running is None:
            self._running = self._start()
        source, faults, batch = cast(_Drawn, next(self._running))
        self.step += 1
        self.ledger.add(source, len(batch["index"]), faults)
        return batch

    def get_state(self) -> dict[str, Any]:
        """Returns where the iterator stands, as plain JSON values."""
        return {"step": self.step, "identity": self._identity, "ledger": self.ledger.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where `get_state` was called; with other numbers of processes, workers, threads.

        Raises:
            DataError: the state is of other data or another seed.
        """
        for name, ours in self._identity.items():
            theirs = state["identity"].get(name)
            if theirs != ours:
                raise DataError(f"cannot resume the data: {name} was {theirs}, is now {ours}")
        self.close()
        self.step = int(state["step"])
        self.ledger.set_state(state["ledger"])

    def close(self) -> None:
        """Stops workers and threads; iteration may go on and starts them again."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> grain.DatasetIterator:
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=self._threads)
        batches = self._dataset[self.step :].to_iter_dataset(options)
        if self._workers:
            # Grain reads command-line flags, which only absl's own main function would parse.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            options = MultiprocessingOptions(num_workers=self._workers)
            batches = batches.mp_prefetch(options, _ignore_interrupts)
        return iter(batches)


def _ignore_interrupts(worker: int, count: int) -> None:
    """Leaves Ctrl-C, which a terminal sends to workers as well, to the process that they serve."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def whole_weights(weights: Sequence[float | int]) -> tuple[int, ...]:
    """Returns weights as the smallest whole numbers in the same proportion.

    Raises:
        ValueError: a weight is not positive and finite, or too small beside the others.
    """
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(f"weights must be positive, got {', '.join(map(str, weights))}")
    largest = max(weights)
    shares = [Fraction(weight / largest).limit_denominator(FINEST_WEIGHT) for weight in weights]
    if not all(shares):
        raise ValueError(f"a weight is under {1 / FINEST_WEIGHT} of the largest: {weights}")
    scale = math.lcm(*(share.denominator for share in shares))
    return tuple(int(share * scale) for share in shares)


def draw_stream(step: int, weights: Sequence[int]) -> tuple[int, int]:
    """Returns which stream gives batch `step`, and which of its batches that is.

    Of the first k batches, the first stream gives k - floor(k (W - w) / W) of W = sum(weights); the
    others share the rest by the same rule.

    Source: Grain, mix.py, _dataset_and_key_of_next_element, whose own weights are rounded.
    """
    before, after, left = step, step + 1, sum(weights)
    for stream, weight in enumerate(weights):
        others_before = before * (left - weight) // left
        others_after = after * (left - weight) // left
        if others_after == others_before:
            return stream, before - others_before
        before, after, left = others_before, others_after, left - weight
    raise AssertionError("some stream gives every batch")


class _Mix(grain.transforms.DatasetSelectionMap):
    """Maps a step to (stream, batch of the stream), for Grain."""

    def __init__(self, datasets: Sequence[grain.MapDataset], weights: tuple[int, ...]):
        self.weights = weights
        total = sum(weights)
        pairs = zip(datasets, weights, strict=True)
        self.length = min(min(len(d), sys.maxsize // total) * total // w for d, w in pairs)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, step: int) -> tuple[int, int]:
        return draw_stream(step, self.weights)


@dataclasses.dataclass(frozen=True)
class _Load:
    """Reads and transforms the record at a position of an endless stream, or a replacement."""

    stream: Stream
    number: int
    seed: int

    def __call__(self, position: int, index: int) -> tuple[Example, list[Fault]]:
        source, faults = self.stream.source, []
        records = self.stream.records
        epoch = position // records
        for _ in range(min(ATTEMPTS, records)):
            try:
                example = self.stream.example(self.number, self.seed, epoch, index)
            except BadRecord as error:
                place = self.stream.place(epoch, index)
                faults.append(Fault(index, source.id(place), str(error)))
                index = (index + 1) % records
            else:
                return {**example, "index": np.int64(index)}, faults
        last = faults[-1]
        raise DataError(
            f"{len(faults)} records of {source.name} in a row cannot be used; the last was "
            f"{last.id}: {last.reason}"
        )


def _dataset(
    stream: Stream,
    number: int,
    *,
    seed: int,
    part: tuple[tuple[int, ...], int],
    shuffle: bool,
    repeat: bool,
) -> grain.MapDataset:
    """Returns a process's rows of the batches of one stream as (source name, faults, arrays)."""
    records, batch_size = stream.records, stream.batch_size
    blocks, count = part
    if batch_size < 1 or batch_size % count:
        raise DataError(
            f"the batch size of {stream.source.name} must be a multiple of {count}, the parts "
            f"that devices hold, got {batch_size}"
        )
    wanted = 1 if repeat else batch_size
    if records < wanted:
        raise DataError(f"{stream.source.name} has {records} records, wanted at least {wanted}")
    indices = grain.MapDataset.range(records)
    if shuffle:
        # Not `seed` itself: Grain gives epoch e of seed s the order of epoch 0 of seed s + e.
        entropy = np.random.SeedSequence([seed, number])
        indices = indices.shuffle(seed=int(entropy.generate_state(1)[0]))
    indices = indices.repeat() if repeat else indices[: records // batch_size * batch_size]
    examples = indices.map_with_index(_Load(stream, number, seed))
    height = batch_size // count
    rows = [block * height + row for block in blocks for row in range(height)]
    load = _Rows(stream.source.name, examples, batch_size, tuple(rows))
    return grain.MapDataset.range(len(examples) // batch_size).map(load)


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Reads some rows of a batch of one source."""

    source: str
    examples: grain.MapDataset
    batch_size: int
    rows: tuple[int, ...]

    def __call__(self, batch: int) -> _Drawn:
        first = batch * self.batch_size
        read = [cast(tuple[Example, list[Fault]], self.examples[first + r]) for r in self.rows]
        faults = [fault for _, faults in read for fault in faults]
        arrays = [example for example, _ in read]
        return self.source, faults, {n: np.stack([a[n] for a in arrays]) for n in arrays[0]}
