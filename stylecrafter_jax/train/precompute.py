"""Features computed once: a run's data through its frozen encoders, stored to be trained on.

The examples are those that the run would draw: the same crops, frames and captions, since these
depend on seed, stream, epoch and record alone. Training on their features therefore equals training
on the data, up to rounding, in as many epochs as were encoded; after these, the same crops return.
"""

import contextlib
import functools
import itertools
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stylecrafter_jax.checkpoints.bundle import load_bundle, read_config
from stylecrafter_jax.config import ConfigError, ModelConfig
from stylecrafter_jax.data.features import (
    FEATURES_FILE,
    VERSION,
    FeatureRecord,
    is_features,
    layout,
    to_bytes,
)
from stylecrafter_jax.data.pipeline import ATTEMPTS, Example, Stream
from stylecrafter_jax.data.records import BadRecord, DataError
from stylecrafter_jax.data.shards import Entry, FinishedError, Report, write_shards
from stylecrafter_jax.models.networks import networks, parameter_shapes
from stylecrafter_jax.tokenizer import Tokenizer
from stylecrafter_jax.train.experiment import Experiment
from stylecrafter_jax.train.feature_fit import (
    KINDS,
    baked,
    encoder_hashes,
    used_encoders,
)
from stylecrafter_jax.train.objective import encoded
from stylecrafter_jax.train.stages import STAGES
from stylecrafter_jax.train.streams import check_size, make_streams

Progress = Callable[[int, int], object]
StoredDtype = Literal["float32", "float16"]


class Encoded(NamedTuple):
    """What became of one kind of data.

    Attributes:
        folder: where its features are.
        report: None if the folder was finished before.
        seconds: that it took, without compiling.
    """

    folder: Path
    report: Report | None
    seconds: float


class Encoder(NamedTuple):
    """The frozen encoders on the devices.

    Attributes:
        rows: examples that it takes at a time, at most.
        run: examples -> features, not waited for; of a short batch, the last rows mean nothing.
    """

    rows: int
    run: Callable[[Sequence[Example]], dict[str, Any]]


def encode(
    experiment: Experiment,
    out: Path,
    *,
    kinds: Sequence[str] = KINDS,
    count: int | None = None,
    epochs: int = 1,
    dtype: StoredDtype = "float32",
    shard_size: int = 256,
    batch_size: int = 4,
    devices: Sequence[Any] | None = None,
    progress: Progress = lambda records, total: None,
) -> list[Encoded]:
    """Writes the features of a run's data to `out/images` and `out/videos`.

    Run again, it does only the shards that are missing.

    Args:
        experiment: the run; its seed, stage, data, bundle and dtypes count.
        out: the folder.
        kinds: of the data, which to encode.
        count: records of each source, from its first; None encodes all.
        epochs: times each record is drawn: so many crops of a picture, or cuts of a clip.
        dtype: that features are stored in.
        shard_size: records per shard.
        batch_size: records on each device at a time.
        devices: all local ones unless given.
        progress: called with a number of finished records, and with how many there are in all.

    Raises:
        ConfigError, CheckpointError, DataError: the settings, the bundle or the data cannot be
            used; a folder holds something else; the disk is full.
    """
    for name, number in (("epochs", epochs), ("batch size", batch_size), ("count", count)):
        if number is not None and number < 1:
            raise ConfigError(f"the {name} must be at least 1, got {number}")
    parts, streams = used_encoders(experiment), numbered_streams(experiment)
    chosen = [kind for kind in streams if kind in kinds]
    if not chosen:
        raise ConfigError(f"the run has no {' or '.join(kinds)}")
    for kind in chosen:
        if is_features(getattr(experiment.data, kind)):
            raise ConfigError(f"{getattr(experiment.data, kind)} holds features already")
    config = read_config(experiment.bundle)
    check_size(experiment.data, config)
    settings = {
        "version": VERSION,
        "encoders": encoder_hashes(Path(experiment.bundle), config, parts),
        "compute_dtype": experiment.train.compute_dtype,
        "seed": experiment.train.seed,
        "epochs": epochs,
    }
    encoder = make_encoder(experiment, config, devices or jax.local_devices(), batch_size, dtype)
    records = {kind: min(len(streams[kind][1].source), count or sys.maxsize) for kind in chosen}
    total, results = epochs * sum(records.values()), []
    for kind in chosen:
        draw = functools.partial(_draw, *streams[kind], experiment.train.seed, records[kind])
        row = _row(encoder.run([_first(draw, records[kind])]), 0)  # which also compiles
        begun, report = time.perf_counter(), None
        with contextlib.suppress(FinishedError):
            report = write_shards(
                out / kind,
                FEATURES_FILE,
                {
                    **settings,
                    "source": streams[kind][1].source.name,
                    "data": baked(experiment, kind),
                    "layout": layout(row),
                },
                functools.partial(_entries, draw, encoder, threads=experiment.data.threads),
                records=epochs * records[kind],
                shard_size=shard_size,
                progress=lambda done: progress(done, total),
            )
        results.append(Encoded(out / kind, report, time.perf_counter() - begun))
    return results


def numbered_streams(experiment: Experiment) -> dict[str, tuple[int, Stream]]:
    """Returns the streams of a run with the numbers that decide their random numbers."""
    bundle, data = Path(experiment.bundle), experiment.data
    length = read_config(bundle).clip.text.context_length
    streams = make_streams(
        data, Tokenizer.in_bundle(bundle, length), styled=STAGES[experiment.stage].styled
    )
    kinds = [kind for kind in KINDS if getattr(data, kind)]
    return dict(zip(kinds, enumerate(streams), strict=True))


def make_encoder(
    experiment: Experiment,
    config: ModelConfig,
    devices: Sequence[Any],
    batch_size: int,
    dtype: StoredDtype,
) -> Encoder:
    """Returns a run's encoders, their weights on every device, each device with its rows.

    Raises:
        CheckpointError: the bundle is damaged or lacks an encoder.
    """
    settings, styled = experiment.train, STAGES[experiment.stage].styled
    shapes = parameter_shapes(config)
    _, params = load_bundle(
        experiment.bundle,
        expected=lambda _: shapes,
        parts=used_encoders(experiment),
        verify="hash",
    )
    mesh = Mesh(np.array(devices), ("data",))
    by_row = NamedSharding(mesh, PartitionSpec("data"))
    frozen_dtype = jnp.dtype(settings.frozen_dtype)
    held = {name: np.asarray(value, frozen_dtype) for name, value in params.items()}
    held = jax.device_put(held, NamedSharding(mesh, PartitionSpec()))
    nets = networks(config, jnp.dtype(settings.compute_dtype))

    @jax.jit
    def features(params, batch):
        seen = encoded(nets, params, batch, image_size=config.clip.vision.image_size)
        return {name: value.astype(dtype) for name, value in seen.items()}

    rows, names = batch_size * len(devices), ["pixels", "ids", *["style"] * styled]

    def run(examples: Sequence[Example]) -> dict[str, Any]:
        padded = [*examples, *[examples[0]] * (rows - len(examples))]
        batch = {name: np.stack([example[name] for example in padded]) for name in names}
        seen = features(held, jax.device_put(batch, by_row))
        return {**seen, **{name: np.stack([e[name] for e in padded]) for name in ("ids", "fps")}}

    return Encoder(rows, run)


class _Drawn(NamedTuple):
    """A record's id, and its example or the reason why there is none."""

    id: str
    example: Example | str


def _draw(number: int, stream: Stream, seed: int, records: int, place: int) -> _Drawn:
    """Returns what is drawn at a place; place e * records + i is record i in epoch e."""
    epoch, index = divmod(place, records)
    name = stream.source.id(index)
    try:
        return _Drawn(name, stream.example(number, seed, epoch, index))
    except BadRecord as error:
        return _Drawn(name, str(error))


def _first(draw: Callable[[int], _Drawn], records: int) -> Example:
    """Returns the first example that can be used; its shapes are those of all."""
    drawn = [draw(place) for place in range(min(ATTEMPTS, records))]
    for one in drawn:
        if not isinstance(one.example, str):
            return one.example
    raise DataError(
        f"the first {len(drawn)} records cannot be used; the first is {drawn[0].id}: "
        f"{drawn[0].example}"
    )


def _entries(
    draw: Callable[[int], _Drawn], encoder: Encoder, places: range, *, threads: int
) -> Generator[Entry, None, None]:
    """Yields what to store at each place; threads draw ahead of the devices."""
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(threads, 2 * encoder.rows)
    )
    drawn = grain.MapDataset.range(places.start, places.stop).map(draw).to_iter_dataset(options)

    def batches(drawn: Iterator[_Drawn]):
        while group := list(itertools.islice(drawn, encoder.rows)):
            usable = [one.example for one in group if not isinstance(one.example, str)]
            yield group, encoder.run(usable) if usable else {}

    with contextlib.closing(iter(drawn)) as iterator:
        for group, features in _one_ahead(batches(iterator)):
            arrays, rows = jax.device_get(features), itertools.count()
            for one in group:
                if isinstance(one.example, str):
                    yield _refusal(one.id, one.example)
                else:
                    yield _entry(one.id, _row(arrays, next(rows)))


def _one_ahead(items: Iterable[Any]) -> Iterator[Any]:
    """Yields the items, each once the next is under way: devices work while the host stores."""
    iterator = iter(items)
    for held in itertools.islice(iterator, 1):
        for item in iterator:
            yield held
            held = item
        yield held


def _row(features: dict[str, Any], row: int) -> dict[str, np.ndarray]:
    return {name: np.asarray(value[row]) for name, value in features.items()}


def _entry(name: str, arrays: dict[str, np.ndarray]) -> Entry:
    for field, array in arrays.items():
        if not np.isfinite(array).all():
            return _refusal(name, f"its {field} is not finite as {array.dtype.name}")
    return Entry(to_bytes(FeatureRecord(id=name, arrays=arrays)))


def _refusal(name: str, reason: str) -> Entry:
    """Returns a record that keeps its place and says why it cannot be used."""
    return Entry(to_bytes(FeatureRecord(id=name, refused=reason)), (name, reason))
