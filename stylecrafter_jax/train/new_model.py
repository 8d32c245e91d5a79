"""A model to be trained from scratch: its bundle has a config and a tokenizer, hardly weights."""

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from stylecrafter_jax.checkpoints.bundle import BundleWriter
from stylecrafter_jax.config import ConfigError, ModelConfig
from stylecrafter_jax.models.networks import parameter_shapes
from stylecrafter_jax.params import select
from stylecrafter_jax.tokenizer import Tokenizer
from stylecrafter_jax.train.patch_basis import begin_as_components
from stylecrafter_jax.train.start import initialise


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewModel:
    """What is decided before the first training step.

    Attributes:
        config: the model. `vae.scale_factor` is set anew when a trained autoencoder is merged.
        captions: texts from which to train the tokenizer; empty: it is CLIP's.
        pictures: typical ones; the autoencoder begins as the principal components of their patches
            (see `patch_basis`). None: it begins at random, as all other parts.
    """

    config: ModelConfig
    captions: tuple[str, ...] = ()
    pictures: UInt8[np.ndarray, "n h w 3"] | None = None


def write_new(model: NewModel, out: Path, *, overwrite: bool = False) -> None:
    """Writes the bundle, whole or not at all.

    Raises:
        ConfigError: the text encoder has fewer embeddings than the tokenizer ids, or the
            autoencoder cannot begin as asked.
        CheckpointError: `out` exists and may not be replaced.
    """
    tower = model.config.clip.text
    if model.captions:
        tokenizer = Tokenizer.train(model.captions, tower.vocab_size, tower.context_length)
    else:
        tokenizer = Tokenizer.load()
    if tokenizer.vocab_size > tower.vocab_size:
        raise ConfigError(
            f"clip.text.vocab_size is {tower.vocab_size}, CLIP's tokenizer has "
            f"{tokenizer.vocab_size} ids; give captions to train another"
        )
    weights = {}
    if model.pictures is not None:
        names = select(parameter_shapes(model.config), "^vae/")
        fresh = initialise(model.config, {}, names, seed=0)
        weights = begin_as_components(model.config.vae, fresh, model.pictures)
    with BundleWriter(out, model.config, overwrite=overwrite) as writer:
        for name, value in weights.items():
            writer.add(name, value)
        if model.captions:
            content = tokenizer.backend.to_str().encode("utf-8")
            writer.add_file("tokenizer/tokenizer.json", content)
