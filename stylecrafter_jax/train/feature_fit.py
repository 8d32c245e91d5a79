"""Which features a run may train on: those of its own encoders and its own data settings."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stylecrafter_jax.checkpoints.bundle import part_hash, read_config
from stylecrafter_jax.config import ConfigError, ModelConfig
from stylecrafter_jax.config_json import to_dict
from stylecrafter_jax.data.features import is_features, read_notes
from stylecrafter_jax.train.experiment import Experiment, differences
from stylecrafter_jax.train.stages import STAGES
from stylecrafter_jax.train.start import ENCODERS

KINDS = ("images", "videos")  # of data; also where a run's settings name their sources
# Settings of the data that decide nothing of what the encoders see.
_LATER = ("images", "videos", "drop", "image_batch", "video_batch", "image_share")
_LATER += ("workers", "threads", "max_bad_rate")
_OF_CLIPS = ("frames", "stride")
_OF_STYLE = ("references", "style_short_side", "style_size")


def check_features(experiment: Experiment) -> bool:
    """Returns whether all data of a run are features, so that it needs no encoders.

    Raises:
        ConfigError: features were made with other encoders or other data settings than the run's.
        DataError, CheckpointError: features or bundle are damaged.
    """
    bundle, stage = Path(experiment.bundle), STAGES[experiment.stage]
    paths = {kind: getattr(experiment.data, kind) for kind in KINDS}
    used = {kind: path for kind, path in paths.items() if path}
    features = {kind: Path(path) for kind, path in used.items() if is_features(path)}
    if not features:
        return False
    ours = encoder_hashes(bundle, read_config(bundle), used_encoders(experiment))
    for kind, path in features.items():
        notes = read_notes(path)
        if stage.styled and "image" not in notes["layout"]:
            raise ConfigError(
                f"{path} has no image tokens, which {experiment.stage} trains on; encode the data "
                "with the config of a stage that uses style"
            )
        lines = [
            f"its {part} is another than that of {bundle}"
            for part in ours
            if notes["encoders"].get(part) != ours[part]
        ]
        now = baked(experiment, kind)
        lines += differences({name: notes["data"].get(name) for name in now}, now)
        if lines:
            raise ConfigError(f"{path} does not fit the run: {'; '.join(lines)}")
    return features.keys() == used.keys()


def encoder_hashes(bundle: Path, config: ModelConfig, parts: Sequence[str]) -> dict[str, Any]:
    """Returns what the output of each frozen encoder depends on: config and a hash of its weights.

    UNet and adapter do not count, so features serve every stage of a model.

    Raises:
        ConfigError: the bundle lacks one.
    """
    vae, clip = to_dict(config.vae), to_dict(config.clip)
    del vae["scale_factor"]  # features are unscaled
    configs = {"vae": vae, "text_encoder": clip, "image_encoder": clip}
    hashes = {}
    for part in parts:
        weights = part_hash(bundle, part)
        if weights is None:
            raise ConfigError(f"{bundle} has no {part}, which features depend on")
        hashes[part] = {"config": configs[part], "sha256": weights}
    return json.loads(json.dumps(hashes))


def used_encoders(experiment: Experiment) -> list[str]:
    """Returns the parts whose output a run trains on; without style, these are two.

    Raises:
        ConfigError: the run trains encoders, not on their output.
    """
    stage = STAGES[experiment.stage]
    if stage.goal != "denoising":
        raise ConfigError(f"{experiment.stage} trains on pictures, not on features of them")
    return [part for part in ENCODERS if part in stage.parts]


def baked(experiment: Experiment, kind: str) -> dict[str, Any]:
    """Returns the data settings that features hold fast, as plain JSON values."""
    left_out = _LATER
    if kind == "images":
        left_out += _OF_CLIPS
    if not STAGES[experiment.stage].styled:
        left_out += _OF_STYLE
    values = {name: v for name, v in to_dict(experiment.data).items() if name not in left_out}
    return json.loads(json.dumps({"kind": kind, **values}))
