"""Features computed once: the same as on the fly, resumable, and refused where they do not fit."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from stylecrafter_jax.checkpoints.bundle import BundleWriter, load_bundle, part_hash
from stylecrafter_jax.config import ConfigError
from stylecrafter_jax.data import features as feature_bytes
from stylecrafter_jax.data.pipeline import make_batches
from stylecrafter_jax.data.records import DataError
from stylecrafter_jax.data.sources import open_source
from stylecrafter_jax.models.networks import parameter_shapes
from stylecrafter_jax.tokenizer import Tokenizer
from stylecrafter_jax.train import precompute
from stylecrafter_jax.train.feature_fit import check_features
from stylecrafter_jax.train.loop import train
from stylecrafter_jax.train.metrics_log import read_metrics
from stylecrafter_jax.train.objective import EMPTY_TEXT, are_pictures
from stylecrafter_jax.train.objective import encode as encode_batch
from stylecrafter_jax.train.precompute import Encoder, encode
from stylecrafter_jax.train.stages import STAGES
from stylecrafter_jax.train.start import load_start
from stylecrafter_jax.train.step import row_keys
from stylecrafter_jax.train.streams import make_streams
from tests.train.conftest import changed

FROM_EXAMPLES = ("pixels", "ids", "fps")
ONE = jax.local_devices()[:1]
DROP = {"text": 0.2, "style": 0.2, "both": 0.2}


@pytest.fixture
def dropping(experiment):
    """The small experiment with every random choice a run has."""
    return changed(experiment, data__drop=DROP, data__flip=0.5, data__references=2)


@pytest.fixture
def toy(monkeypatch):
    """Encoders that take an average: most laws hold for any."""

    def make_encoder(experiment, config, devices, batch_size, dtype):
        def run(examples):
            rows = [np.stack([example[name] for example in examples]) for name in FROM_EXAMPLES]
            pixels, ids, fps = rows
            light = pixels.astype(dtype).mean(axis=(2, 3), keepdims=True) / 255
            features = {"mean": light, "logvar": -light, "text": ids[..., None].astype(dtype)}
            if STAGES[experiment.stage].styled:
                features["image"] = np.stack([e["style"] for e in examples]).mean(axis=(2, 3))
                features["image"] = features["image"].astype(dtype)
            return {**features, "ids": ids, "fps": fps}

        return Encoder(batch_size, run)

    monkeypatch.setattr(precompute, "make_encoder", make_encoder)


def encoded(experiment, out, **settings):
    return encode(experiment, out, **{"devices": ONE, "batch_size": 2, **settings})


def on_features(experiment, out):
    kinds = ("images", "videos")
    have = [kind for kind in kinds if getattr(experiment.data, kind)]
    return changed(experiment, **{f"data__{kind}": str(out / kind) for kind in have})


def batches(experiment, steps):
    stage = STAGES[experiment.stage]
    streams = make_streams(experiment.data, Tokenizer.load(), styled=stage.styled)
    found = make_batches(streams, seed=experiment.train.seed, max_bad_rate=0.5)
    return [jax.tree.map(jnp.asarray, found[step]) for step in range(steps)]


def seen_by(nets, batch):
    """What the loss sees of a batch, with a fixed key."""
    params = {**nets[1], EMPTY_TEXT: np.zeros((1, 77, 24), np.float32)}
    keys = row_keys(jax.random.key(3), len(batch["index"]))
    see = functools.partial(encode_batch, nets[0], scale_factor=0.5, image_size=224)
    return jax.jit(see)(params, batch, keys)


@pytest.fixture
def bundle_weights(small_bundle, nets):
    """The networks with the weights of the small bundle."""
    return nets[0], load_bundle(small_bundle, expected=parameter_shapes)[1]


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_batches_of_features_are_those_of_the_data(dropping, bundle_weights, tmp_path):
    """Order, crops, drops and posterior noise, over two epochs of five pictures, two a batch."""
    (result,) = encoded(dropping, tmp_path, epochs=2)
    assert (result.report.packed, result.report.new) == (10, 10)
    pairs = zip(batches(dropping, 5), batches(on_features(dropping, tmp_path), 5), strict=True)
    for pixels, features in pairs:
        assert "pixels" not in features and "ids" not in features
        assert are_pictures(pixels) and are_pictures(features)
        for name in ("index", "drop_text", "drop_style", "fps"):
            np.testing.assert_array_equal(pixels[name], features[name])
        one, other = seen_by(bundle_weights, pixels), seen_by(bundle_weights, features)
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-5), one, other)
    third = batches(on_features(dropping, tmp_path), 9)
    index = [i for batch in third for i in batch["index"]]
    means = {}
    for i, mean in zip(index, (m for b in third for m in b["mean"]), strict=True):
        means.setdefault(int(i), set()).add(np.asarray(mean).tobytes())
    assert {len(crops) for crops in means.values()} <= {1, 2}  # the centre, or its mirror image


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_training_on_features_is_training_on_the_data(dropping, clips, tmp_path, stage):
    videos = str(clips) if stage == "stage2" else None
    # Four pictures and four clips at most: one epoch of each.
    run = changed(
        dropping, stage=stage, data__videos=videos, train__steps=2 if videos is None else 4
    )
    encode(run, tmp_path, epochs=2)
    settings = [run, on_features(run, tmp_path)]
    for number, experiment in enumerate(settings):
        assert train(experiment, tmp_path / f"run{number}", progress=False).finished
    one, other = (read_metrics(tmp_path / f"run{number}") for number in range(2))
    for name in ("loss", "grad_norm"):
        values = [[row[name] for row in rows] for rows in (one, other)]
        np.testing.assert_allclose(*values, rtol=1e-4)


def test_a_run_on_features_holds_no_encoders(small_bundle):
    held = [
        load_start(
            small_bundle, STAGES["stage1"], frozen_dtype=np.float32, seed=0, encoders=encoders
        )
        for encoders in (True, False)
    ]
    gone = held[0].frozen.keys() - held[1].frozen.keys()
    assert {name.split("/")[0] for name in gone} == {"vae", "text_encoder", "image_encoder"}
    assert {name.split("/")[0] for name in held[1].frozen} == {"unet", "empty_prompt"}
    np.testing.assert_array_equal(held[0].frozen[EMPTY_TEXT], held[1].frozen[EMPTY_TEXT])


def test_all_devices_encode_what_one_does(dropping, tmp_path):
    assert len(jax.local_devices()) > 1
    encoded(dropping, tmp_path / "one")
    encode(dropping, tmp_path / "all", batch_size=1)
    one, other = (open_source(tmp_path / name / "images") for name in ("one", "all"))
    assert len(one) == len(other) == 5
    for i in range(5):
        assert one[i].id == other[i].id == f"{i}.jpg"
        assert one[i].arrays.keys() == other[i].arrays.keys()
        for name, array in one[i].arrays.items():
            np.testing.assert_allclose(array, other[i].arrays[name], atol=1e-5)


def test_encoding_goes_on_after_an_interruption_with_the_same_bytes(toy, dropping, tmp_path):
    encoded(dropping, tmp_path / "whole", shard_size=2, epochs=2)
    parts, seen = tmp_path / "parts", []

    def interrupt(records, total):
        seen.append((records, total))
        if len(seen) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoded(dropping, parts, shard_size=2, epochs=2, progress=interrupt)
    assert seen[0] == (1, 10)
    left = contents(parts / "images")
    assert "data-00001-of-00005.array_record" in left
    assert not any("partial" in name or "00002" in name for name in left)
    with pytest.raises(DataError, match="was not finished; run the command that made it again"):
        open_source(parts / "images")
    (result,) = encoded(dropping, parts, shard_size=2, epochs=2)
    assert (result.report.resumed, result.report.new) == (2, 6)
    assert contents(parts / "images") == contents(tmp_path / "whole" / "images")
    (again,) = encoded(dropping, parts, shard_size=2, epochs=2)
    assert again.report is None
    with pytest.raises(DataError, match="another seed, epochs"):
        encoded(changed(dropping, train__seed=1), parts, shard_size=2)


def test_what_cannot_be_used_is_replaced_as_on_the_fly(toy, experiment, pictures, tmp_path):
    folder = tmp_path / "some"
    shutil.copytree(pictures, folder)
    (folder / "2.jpg").write_bytes(b"")
    some = changed(experiment, data__images=str(folder))
    (result,) = encoded(some, tmp_path / "out")
    assert (result.report.packed, result.report.refused) == (
        4,
        [("2.jpg", "the file has zero bytes")],
    )
    pairs = zip(batches(some, 4), batches(on_features(some, tmp_path / "out"), 4), strict=True)
    assert all(np.array_equal(one["index"], other["index"]) for one, other in pairs)
    streams = make_streams(on_features(some, tmp_path / "out").data, Tokenizer.load(), styled=True)
    with make_batches(streams, seed=0, max_bad_rate=0.5) as found:
        for _ in range(4):
            next(found)
        assert (
            "images: 2 of " in found.ledger.summary() or "images: 1 of " in found.ledger.summary()
        )
        (fault,) = found.ledger.quarantine["images"].values()
    assert (fault.id, fault.reason) == ("2.jpg", "the file has zero bytes")


def test_damaged_features_are_replaced_and_counted(toy, experiment, tmp_path):
    encoded(experiment, tmp_path)
    (shard,) = (tmp_path / "images").glob("*.array_record")
    source = open_source(tmp_path / "images")
    data = [feature_bytes.to_bytes(source[i]) for i in range(5)]
    data[3] = data[3][:-7]
    writer = ArrayRecordWriter(str(shard), "group_size:1")
    for record in data:
        writer.write(record)
    writer.close()
    streams = make_streams(on_features(experiment, tmp_path).data, Tokenizer.load(), styled=True)
    with make_batches(streams, seed=0, max_bad_rate=0.5) as found:
        rows = [i for _ in range(5) for i in next(found)["index"].tolist()]
        (fault,) = found.ledger.quarantine["images"].values()
    assert 3 not in rows
    assert fault.index == 3 and "damaged features" in fault.reason


def test_float16_features_are_the_rounded_ones(toy, experiment, tmp_path):
    encoded(experiment, tmp_path / "full", count=2)
    encoded(experiment, tmp_path / "half", count=2, dtype="float16")
    full, half = (open_source(tmp_path / name / "images") for name in ("full", "half"))
    assert len(full) == len(half) == 2
    for name, array in full[1].arrays.items():
        other = half[1].arrays[name]
        assert other.dtype == (np.float16 if name not in ("ids", "fps") else array.dtype)
        np.testing.assert_allclose(array, other, rtol=1e-3, atol=1e-4)


@pytest.fixture
def rewritten(small_bundle, tmp_path):
    """Writes the small bundle again, with weights that match a prefix moved."""
    config, params = load_bundle(small_bundle, expected=parameter_shapes)

    def write(prefix, scale_factor=config.vae.scale_factor, **settings):
        path = tmp_path / f"bundle-{prefix}"
        vae = dataclasses.replace(config.vae, scale_factor=scale_factor)
        with BundleWriter(path, dataclasses.replace(config, vae=vae), **settings) as writer:
            for name, value in reversed(params.items()):
                writer.add(name, value + 0.5 if name.startswith(prefix) else value)
        return str(path)

    return write


def test_features_serve_another_unet_and_no_other_encoder(toy, experiment, rewritten, tmp_path):
    encoded(experiment, tmp_path / "out")
    ours = on_features(experiment, tmp_path / "out")
    assert check_features(ours) and not check_features(experiment)
    # The same weights in other files, too, and latents that are scaled differently.
    other = rewritten("unet", scale_factor=0.7, shard_bytes=20_000)
    assert part_hash(other, "vae") == part_hash(experiment.bundle, "vae")
    assert part_hash(other, "unet") != part_hash(experiment.bundle, "unet")
    assert check_features(changed(ours, bundle=other))
    for part in ("vae", "image_encoder"):
        with pytest.raises(ConfigError, match=f"images does not fit the run: its {part} is") as e:
            check_features(changed(ours, bundle=rewritten(part)))
        assert f"bundle-{part}" in str(e.value) and "\n" not in str(e.value)


def test_settings_that_are_baked_in_must_be_the_runs(toy, experiment, clips, tmp_path):
    both = changed(experiment, stage="stage2", data__videos=str(clips))
    encoded(both, tmp_path)
    ours = on_features(both, tmp_path)
    assert check_features(ours)
    assert check_features(changed(ours, data__drop=DROP, data__image_batch=1, train__seed=5))
    assert not check_features(changed(ours, data__images=both.data.images))
    with pytest.raises(
        ConfigError, match="does not fit the run: height was 8, is now 16; stride was"
    ):
        check_features(changed(ours, data__height=16, data__stride=(1, 2), data__images=None))
    with pytest.raises(ConfigError, match="references was 1, is now 2"):
        check_features(changed(ours, data__references=2))
    with pytest.raises(ConfigError, match='kind was "videos", is now "images"'):
        check_features(changed(ours, data__images=ours.data.videos))
    (frames,) = {mean.shape[1] for mean in (batches(ours, 2)[1]["mean"],)}
    assert frames in (1, 2)


def test_a_styled_stage_needs_image_tokens(toy, experiment, tmp_path):
    base = changed(experiment, stage="base")
    encoded(base, tmp_path)
    assert "image" not in open_source(tmp_path / "images")[0].arrays
    assert check_features(on_features(base, tmp_path))
    with pytest.raises(ConfigError, match="has no image tokens, which stage1 trains on"):
        train(on_features(experiment, tmp_path), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_features_of_a_styled_stage_serve_one_without(toy, experiment, tmp_path):
    encoded(experiment, tmp_path)
    base = on_features(changed(experiment, stage="base"), tmp_path)
    assert check_features(base)
    assert "image" not in batches(base, 1)[0]


def test_mistakes_are_one_line(toy, experiment, tmp_path):
    with pytest.raises(ConfigError, match="the run has no videos"):
        encode(experiment, tmp_path / "out", kinds=["videos"])
    with pytest.raises(ConfigError, match="autoencoder trains on pictures, not on features"):
        encode(changed(experiment, stage="autoencoder"), tmp_path / "out")
    with pytest.raises(ConfigError, match="the epochs must be at least 1"):
        encode(experiment, tmp_path / "out", epochs=0)
    with pytest.raises(ConfigError, match="data.height must be a multiple of 2"):
        encode(changed(experiment, data__height=9), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    encoded(experiment, tmp_path / "out")
    ours = on_features(experiment, tmp_path / "out")
    with pytest.raises(ConfigError, match="autoencoder trains on pictures, not on features"):
        check_features(changed(ours, stage="autoencoder"))
    with pytest.raises(ConfigError, match="holds features already"):
        encode(ours, tmp_path / "twice")
    notes = tmp_path / "out/images/features.json"
    values = json.loads(notes.read_text())
    notes.write_text(json.dumps({**values, "records": 6}))
    with pytest.raises(DataError, match="has 5 of its 6 records"):
        batches(ours, 1)
