"""A run's folder: what it trains, whether it may go on, and its model as a bundle.

run.json         the experiment, the bundle's manifest hash, versions
checkpoints/     Orbax; see `checkpoints.store`
metrics.jsonl    one object a line; the same in tensorboard/
events.jsonl     starts, stops and faults; see `events`
skipped.jsonl    steps whose update was not finite, with the batch's records
spikes.jsonl     steps whose loss stands out, likewise; see `spikes`
refused.jsonl    records that could not be used, and why
samples/         step_000500.png and, of videos, .mp4; see `samples`
profile/         of steps that were asked for; see `profiling`
replay/          of a step that was done again; see `replay`
report.html      of `stylecrafter report`
"""

import json
import tempfile
from collections.abc import Collection
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.typing import DTypeLike

from stylecrafter_jax import params as weights
from stylecrafter_jax.checkpoints.bundle import (
    BundleWriter,
    load_bundle,
    manifest_hash,
    part_of,
)
from stylecrafter_jax.checkpoints.convert import export_original
from stylecrafter_jax.checkpoints.store import Store
from stylecrafter_jax.checkpoints.stylecrafter import Kind
from stylecrafter_jax.checkpoints.torch_files import CheckpointError
from stylecrafter_jax.config import ConfigError, ModelConfig
from stylecrafter_jax.config_json import from_dict, to_dict
from stylecrafter_jax.files import write_text
from stylecrafter_jax.foreign import JSONError, read_json
from stylecrafter_jax.models.networks import parameter_shapes
from stylecrafter_jax.params import Params
from stylecrafter_jax.tokenizer import Tokenizer
from stylecrafter_jax.train.experiment import Experiment, differences
from stylecrafter_jax.train.latent_scale import latent_scale
from stylecrafter_jax.train.optimizer import make_optimizer
from stylecrafter_jax.train.stages import STAGES
from stylecrafter_jax.train.step import init_state

RUN_FILE = "run.json"
CHECKPOINTS = "checkpoints"
REFUSED = "refused.jsonl"
Which = Literal["ema", "last"]
# Settings that a run may change when it goes on.
FREE = (
    "mesh",
    "samples",
    *(f"data.{name}" for name in ("workers", "threads", "max_bad_rate")),
    *(f"train.{name}" for name in ("save_every", "log_every", "keep_last", "keep_best")),
    *(f"train.{name}" for name in ("max_skipped", "on_save_error", "spike_deviations", "remat")),
)


def claim(run: Path, experiment: Experiment, manifest: str) -> None:
    """Makes the folder of a run, or checks that the run in it is this one.

    More `train.steps` are allowed, unless the learning rate's decay is as long as the run, and
    whatever changes what is trained by no more than rounding: `FREE`, and `train.accumulate` where
    a row's loss is its own.

    Raises:
        ConfigError: the folder is something else, the config differs, or the bundle's content does.
    """
    if (run / RUN_FILE).exists():
        check_same(run, experiment, manifest)
    elif run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise ConfigError(f"{run} exists and is no run; choose another folder")
    run.mkdir(parents=True, exist_ok=True)
    content = {
        "experiment": to_dict(experiment),
        "bundle": {"path": str(Path(experiment.bundle).resolve()), "manifest_sha256": manifest},
        "versions": {name: metadata.version(name) for name in ("jax", "flax", "optax", "grain")},
    }
    write_text(run / RUN_FILE, json.dumps(content, indent=1) + "\n")


def read_run(run: Path) -> dict[str, Any]:
    """Returns the content of a run's `run.json`.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    try:
        found = read_json(run / RUN_FILE)
    except FileNotFoundError as error:
        raise ConfigError(f"{run} is no run: {RUN_FILE} is missing") from error
    except JSONError as error:
        raise ConfigError(f"{run}/{RUN_FILE} is damaged: {error}") from error
    bundle = found.get("bundle") if isinstance(found, dict) else None
    held = bundle.keys() if isinstance(bundle, dict) else set()
    if not {"path", "manifest_sha256"} <= held or not isinstance(found.get("experiment"), dict):
        raise ConfigError(f"{run}/{RUN_FILE} is damaged: it names no experiment or no bundle")
    return found


def check_same(run: Path, experiment: Experiment, manifest: str) -> None:
    """Refuses to take a folder for the run of an experiment if it is another's; see `claim`."""
    found = read_run(run)
    old, new = found["experiment"], to_dict(experiment)
    free = {*FREE, "bundle"}  # which is known by its content, wherever it lies
    decay_is_fixed = experiment.optimizer.schedule == "constant" or experiment.optimizer.decay_steps
    if decay_is_fixed and new["train"]["steps"] > old["train"]["steps"]:
        free.add("train.steps")
    if STAGES[experiment.stage].goal != "contrast":
        free.add("train.accumulate")
    lines = differences(old, new, free)
    if found["bundle"]["manifest_sha256"] != manifest:
        lines.append(f"the content of the bundle {experiment.bundle} is another")
    if lines:
        raise ConfigError(f"{run} is a run of another config: {'; '.join(lines)}")


def merged(run: Path, which: Which = "ema") -> tuple[ModelConfig, Params]:
    """Returns the model of a run: its bundle with the weights of the newest checkpoint.

    Args:
        run: the folder.
        which: the moving average, or the last weights.

    Raises:
        CheckpointError: there is no checkpoint, or the bundle is absent or another than it was.
        ConfigError: there is no run.
    """
    found = read_run(run)
    bundle, experiment = Path(found["bundle"]["path"]), from_dict(Experiment, found["experiment"])
    config, params = load_bundle(bundle, expected=parameter_shapes)
    if manifest_hash(bundle) != found["bundle"]["manifest_sha256"]:
        raise CheckpointError(f"{bundle} is another bundle than {run} started from")
    shapes = weights.select(parameter_shapes(config), STAGES[experiment.stage].trainable)
    tx = make_optimizer(experiment.optimizer, experiment.train.steps)
    like = jax.eval_shape(lambda params: init_state(params, tx), shapes)
    field = "ema" if which == "ema" else "trainable"
    wanted = jax.tree.map(lambda _: ..., like)._replace(**{field: getattr(like, field)})
    if not (run / CHECKPOINTS).is_dir():
        raise CheckpointError(f"{run} has no checkpoint yet")
    store = Store(run / CHECKPOINTS)
    try:
        state = store.in_host_memory(wanted)
    finally:
        store.close()
    return config, {**params, **getattr(state, field)}


def write_bundle(
    run: Path,
    out: Path,
    *,
    which: Which = "ema",
    dtype: DTypeLike | None = None,
    overwrite: bool = False,
) -> None:
    """Writes the model of a run as a bundle, with the other files of the bundle it came from.

    A newly trained autoencoder's `scale_factor` is measured.

    Args:
        run: the folder.
        out: the bundle.
        which: the moving average, or the last weights.
        dtype: of all weights; None keeps what they have.
        overwrite: replace a bundle that is there.
    """
    config, params = merged(run, which)
    found = read_run(run)
    source = Path(found["bundle"]["path"])
    experiment = from_dict(Experiment, found["experiment"])
    if STAGES[experiment.stage].goal == "reconstruction":
        tokenizer = Tokenizer.in_bundle(source, config.clip.text.context_length)
        scale = latent_scale(experiment, config, params, tokenizer)
        config = replace(config, vae=replace(config.vae, scale_factor=scale))
    with BundleWriter(out, config, overwrite=overwrite) as writer:
        for name in sorted(params, key=lambda name: (weights.PARTS.index(part_of(name)), name)):
            writer.add(name, np.asarray(params[name], dtype))
        writer.add_files_of(source)


def is_run(path: Path) -> bool:
    """Returns whether a folder is that of a training run."""
    return (path / RUN_FILE).is_file()


def export_run(
    run: Path, out_dir: Path, what: Collection[Kind] | None = None, *, overwrite: bool = False
) -> list[Path]:
    """Writes the original's files of a run's model, by way of a bundle; returns their paths."""
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir, prefix=".bundle-") as scratch:
        bundle = Path(scratch) / "bundle"
        write_bundle(run, bundle)
        return export_original(
            bundle, out_dir, expected=parameter_shapes, what=what, overwrite=overwrite
        )
