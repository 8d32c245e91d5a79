"""The weights a run starts from: a bundle's, and fresh ones for parts that it trains anew.

They are in host memory; `sharding` says where each of them lies on the devices of a run.
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.typing import DTypeLike

from stylecrafter_jax import params as weights
from stylecrafter_jax.checkpoints.bundle import (
    load_bundle,
    manifest_hash,
    part_of,
    parts_of,
    read_config,
    read_manifest,
)
from stylecrafter_jax.checkpoints.torch_files import CheckpointError
from stylecrafter_jax.config import ModelConfig
from stylecrafter_jax.models.networks import init_params, networks, parameter_shapes
from stylecrafter_jax.params import Params
from stylecrafter_jax.tokenizer import Tokenizer
from stylecrafter_jax.train.objective import EMPTY_TEXT
from stylecrafter_jax.train.stages import Stage


class Start(NamedTuple):
    """What a run starts from; its arrays are NumPy's, and on no device.

    Attributes:
        config: the model.
        trainable: the weights that the stage trains, float32.
        frozen: the others that it uses, and `objective.EMPTY_TEXT` for a denoising stage.
        tokenizer: the text encoder's.
        manifest: SHA-256 of the bundle's manifest, which lists the hashes of all its files.
    """

    config: ModelConfig
    trainable: Params
    frozen: Params
    tokenizer: Tokenizer
    manifest: str


# Their output is what `stylecrafter data encode` stores.
ENCODERS = ("vae", "text_encoder", "image_encoder")


def load_start(
    bundle: Path, stage: Stage, *, frozen_dtype: DTypeLike, seed: int, encoders: bool = True
) -> Start:
    """Returns the weights of a bundle as the stage uses them; the files' hashes are compared.

    Args:
        bundle: the folder.
        stage: what trains.
        frozen_dtype: what frozen weights are held in.
        seed: of new weights.
        encoders: keep the frozen encoders; a run on features needs none.

    Raises:
        CheckpointError: the bundle is damaged, or lacks a part that the stage does not train.
    """
    have = parts_of(read_manifest(bundle))
    unused = () if encoders else ("vae", "image_encoder")
    parts = [part for part in stage.parts if part not in unused]
    shapes = parameter_shapes(read_config(bundle))
    config, params = load_bundle(
        bundle,
        expected=lambda _: shapes,
        parts=[part for part in parts if part in have],
        verify="hash",
    )
    missing = {name for name in shapes if part_of(name) in parts and name not in params}
    lacking = sorted({part_of(n) for n in missing if not re.search(stage.trainable, n)})
    if lacking:
        raise CheckpointError(
            f"{bundle} has no {', '.join(lacking)}, which this stage uses but does not train"
        )
    params |= initialise(config, params, missing, seed)
    trainable = weights.select(params, stage.trainable)
    frozen = {
        name: np.asarray(value, frozen_dtype)
        for name, value in params.items()
        if name not in trainable
    }
    tokenizer = Tokenizer.in_bundle(bundle, config.clip.text.context_length)
    constants = {}
    if stage.goal == "denoising":
        text_encoder = weights.select(frozen, "^text_encoder/")
        empty = jax.jit(networks(config).encode_text)(text_encoder, tokenizer([""]))
        constants[EMPTY_TEXT] = np.asarray(empty)
    if not encoders:
        frozen = {name: value for name, value in frozen.items() if part_of(name) not in ENCODERS}
    return Start(
        config,
        {name: np.asarray(value, np.float32) for name, value in trainable.items()},
        {**frozen, **constants},
        tokenizer,
        manifest_hash(bundle),
    )


def initialise(config: ModelConfig, params: Params, missing: Collection[str], seed: int) -> Params:
    """Returns fresh weights of the missing names, in host memory; the style's K, V are the text's.

    Source: StyleCrafter paper, eq. 1; lvdm/modules/attention.py, DualCrossAttnProcessorAS.
    """
    if not missing:
        return {}

    @jax.jit  # which computes the missing ones alone
    def fresh(key):
        return {name: v for name, v in init_params(config, key).items() if name in missing}

    new = jax.device_get(fresh(jax.random.key(seed)))
    # Of a whole new UNet the text's own K and V are new as well.
    known = {**new, **params}
    copied = {
        name: np.asarray(known[re.sub(r"(to_[kv])_style", r"\1", name)])
        for name in missing
        if re.search(r"attn2/to_[kv]_style/", name)
    }
    return {**new, **copied}
