"""The `data encode` subcommand: settings reach the encoder, its report reaches the user."""

from pathlib import Path

import pytest

from stylecrafter_jax.data.shards import Report
from stylecrafter_jax.train import precompute
from stylecrafter_jax.train.precompute import Encoded
from tests.commands.test_train import config  # noqa: F401 - a fixture
from tests.train.conftest import experiment, pictures  # noqa: F401 - fixtures


@pytest.fixture
def seen(monkeypatch):
    """What the command asked for; it is told of two kinds of data."""
    calls = []

    def encode(experiment, out, *, progress, **settings):  # noqa: F811
        calls.append((experiment, settings))
        progress(4, 10)
        report = Report(
            packed=9, refused=[("a.jpg", "no")], shards=2, resumed=1, new=6, bytes=1_500_000
        )
        return [Encoded(out / "images", report, 2.0), Encoded(out / "videos", None, 0.0)]

    monkeypatch.setattr(precompute, "encode", encode)
    return calls


def test_settings_reach_the_encoder(run, config, seen):  # noqa: F811
    options = "--set", "data.height=16", "--videos", "--epochs", 3, "--count", 5, "--quiet"
    ran = run("data", "encode", config, "--out", "features", *options, "--dtype", "float16")
    assert ran.status == 0 and not ran.err
    assert ran.out == [
        "refused a.jpg: no",
        "wrote 9 records (1.5 MB) in 2 shards, 1 of them made before to features/images; "
        "refused 1; 3.0 records/s",
        "features/videos is finished already",
    ]
    ((experiment, settings),) = seen  # noqa: F811
    assert experiment.data.height == 16
    assert settings == {
        "kinds": ("videos",), "epochs": 3, "count": 5, "dtype": "float16", "shard_size": 256,
        "batch_size": 4,
    }  # fmt: skip


def test_all_data_are_encoded_unless_told_otherwise(run, config, seen):  # noqa: F811
    assert run("data", "encode", config, "--out", "features").status == 0
    assert seen[0][1]["kinds"] == ("images", "videos")


def test_mistakes_are_one_line(run, config):  # noqa: F811
    ran = run("data", "encode", config, "--out", "out", "--videos")
    assert ran.status == 1 and ran.err == ["stylecrafter: error: the run has no videos"]
    with pytest.raises(SystemExit, match="2"):
        run("data", "encode", config, "--out", "out", "--videos", "--images")
    assert not Path("out").exists()


def test_features_are_nothing_to_look_at(run, tmp_path):
    (tmp_path / "features.json").write_text("{}")
    ran = run("data", "inspect", tmp_path)
    assert ran.status == 1
    assert ran.err == [f"stylecrafter: error: {tmp_path} holds features, not pictures or videos"]
