import dataclasses
import json

import numpy as np
import pytest

from stylecrafter_jax.checkpoints.bundle import load_bundle, parts_of, read_config, read_manifest
from stylecrafter_jax.cli import main
from stylecrafter_jax.config import ConfigError
from stylecrafter_jax.models.networks import parameter_shapes
from stylecrafter_jax.tokenizer import Tokenizer
from stylecrafter_jax.train.experiment import (
    DataConfig,
    Experiment,
    MeshConfig,
    OptimizerConfig,
    TrainConfig,
)
from stylecrafter_jax.train.loop import train
from stylecrafter_jax.train.new_model import NewModel, write_new
from stylecrafter_jax.train.runs import write_bundle
from tests.conftest import SMALL

CAPTIONS = ("a red boat", "a blue boat", "two boats at sea")


def small():
    text = dataclasses.replace(SMALL.clip.text, vocab_size=600, context_length=8)
    return dataclasses.replace(SMALL, clip=dataclasses.replace(SMALL.clip, text=text))


def test_new_bundle_has_a_tokenizer_and_no_weights(tmp_path):
    write_new(NewModel(config=small(), captions=CAPTIONS), tmp_path / "new")
    assert parts_of(read_manifest(tmp_path / "new")) == []
    assert read_config(tmp_path / "new") == small()
    tokenizer = Tokenizer.in_bundle(tmp_path / "new", 8)
    ids = tokenizer(["a red boat"])[0]
    assert ids.max() < 600
    # start, three words that the captions taught it whole, end
    assert np.count_nonzero(ids) == 5


def test_too_few_embeddings_are_refused(tmp_path):
    with pytest.raises(
        ConfigError, match="clip.text.vocab_size is 600, CLIP's tokenizer has 49408"
    ):
        write_new(NewModel(config=small()), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_command_wants_a_model(tmp_path, capsys):
    (tmp_path / "model.py").write_text("def get_model():\n    return 3\n")
    assert main(["new", str(tmp_path / "model.py"), str(tmp_path / "new")]) == 1
    assert "get_model() gave a int" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["autoencoder", "clip"])
def test_encoders_train_from_nothing(tmp_path, stage):
    config = small()
    write_new(NewModel(config=config, captions=CAPTIONS), tmp_path / "new")
    experiment = Experiment(
        stage=stage,
        bundle=str(tmp_path / "new"),
        data=DataConfig(images="world:looks:64", height=32, width=32, image_batch=4),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        train=TrainConfig(
            steps=12, save_every=12, log_every=1, compute_dtype="float32", ema_decay=0.0
        ),
        mesh=MeshConfig(data=1),
    )
    assert train(experiment, tmp_path / "run", progress=False).finished
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    write_bundle(tmp_path / "run", tmp_path / "out", dtype=np.float16)
    merged, params = load_bundle(tmp_path / "out", expected=parameter_shapes)
    trained = {"autoencoder": {"vae"}, "clip": {"text_encoder", "image_encoder"}}[stage]
    assert {name.split("/")[0] for name in params} == trained
    assert {value.dtype for value in params.values()} == {np.dtype(np.float16)}
    if stage == "autoencoder":
        assert merged.vae.scale_factor != config.vae.scale_factor
    # The tokenizer came along.
    assert (tmp_path / "out/tokenizer/tokenizer.json").is_file()
