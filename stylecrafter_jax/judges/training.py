"""Trains the judges on drawings of the demo world, and measures them on drawings they never saw.

Run as `python -m stylecrafter_jax.judges.training OUT.safetensors`; it writes OUT.json, too.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import save_file
from scipy import ndimage
from tqdm import tqdm

from stylecrafter_jax.data.device import DeviceBatches
from stylecrafter_jax.data.pipeline import Stream, make_batches
from stylecrafter_jax.judges.judging import CLIPS, PICTURES, Judges, load_judges, normalised, seen
from stylecrafter_jax.models.judge import JudgeNetwork, apply, init_params
from stylecrafter_jax.params import Params
from stylecrafter_jax.train.experiment import OptimizerConfig
from stylecrafter_jax.train.optimizer import make_optimizer
from stylecrafter_jax.train.step import Batch, Loss, Metrics, init_state, make_train_step
from stylecrafter_jax.world.contents import CONTENTS, HELD_OUT_SETS, TRAIN_SETS
from stylecrafter_jax.world.drawing import draw
from stylecrafter_jax.world.scenes import FRAMES, MOTIONS
from stylecrafter_jax.world.source import Split, WorldItem, WorldSource

TEMPERATURE = 0.1  # of the style embeddings' cosines
COUNT = 1_000_000
# Seeds of training and of the measurement; the model's own training uses 0.
TRAIN_SEED, TEST_SEED = 100, 200
CANDIDATES = 10  # among which a style is found
OPTIMIZER = OptimizerConfig(
    name="muon", learning_rate=2e-3, schedule="cosine", weight_decay=0.02, clip_norm=1.0
)


class PictureTransform:
    """An item and its first reference: two contents in one style, a little blurred or noisy."""

    def __call__(self, item: WorldItem, rng: np.random.Generator) -> dict[str, Any]:
        """Returns `pixels` (2 64 64 3), `content` (2) and whether they have a style."""
        scenes = item.scene, item.references[0]
        return {
            "pixels": np.concatenate([worn(draw(scene), rng) for scene in scenes]),
            "content": np.array([CONTENTS.index(scene.content) for scene in scenes], np.int32),
            "styled": np.float32(item.scene.style is not None),
        }


class ClipTransform:
    """A clip, a little blurred or noisy, its colours mixed and perhaps inverted."""

    def __call__(self, item: WorldItem, rng: np.random.Generator) -> dict[str, Any]:
        """Returns `pixels` (f 64 64 3) and `motion`."""
        pixels = draw(item.scene) / 255.0 - 0.5
        mix = np.eye(3) + rng.normal(0, 0.4, (3, 3))
        mixed = (pixels @ (mix * rng.choice((-1.0, 1.0)))).clip(-0.5, 0.5) + 0.5
        return {
            "pixels": worn((mixed * 255).astype(np.uint8), rng),
            "motion": np.int32(MOTIONS.index(item.scene.motion)),
        }


def worn(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns frames blurred by up to a pixel and with some noise, half of the time."""
    if rng.random() < 0.5:
        return pixels
    sigma = rng.uniform(0, 1.0)
    blurred = ndimage.gaussian_filter(pixels.astype(np.float32), (0, sigma, sigma, 0))
    noisy = blurred + rng.normal(0, rng.uniform(0, 12), pixels.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def picture_loss(params: Params, batch: Batch, key: Any = None) -> tuple[jax.Array, Metrics]:
    """Cross-entropy of the contents, and of finding the partner's style in the batch."""
    b, pair = batch["content"].shape
    out = apply(
        PICTURES, params, seen(batch["pixels"].reshape(b * pair, *batch["pixels"].shape[2:]))
    )
    labels = batch["content"].reshape(-1)
    content = optax.softmax_cross_entropy_with_integer_labels(out["content"], labels).mean()
    style = normalised(out["style"]).reshape(b, pair, -1)
    logits = style[:, 0] @ style[:, 1].T / TEMPERATURE
    own = jnp.arange(b)
    found = optax.softmax_cross_entropy_with_integer_labels
    contrast = 0.5 * (found(logits, own) + found(logits.T, own)).mean() * batch["styled"].mean()
    right = jnp.mean(jnp.argmax(out["content"], -1) == labels)
    return content + contrast, {"content": right, "contrast": contrast}


def clip_loss(params: Params, batch: Batch, key: Any = None) -> tuple[jax.Array, Metrics]:
    """Cross-entropy of the motions."""
    logits = apply(CLIPS, params, seen(batch["pixels"]))["motion"]
    value = optax.softmax_cross_entropy_with_integer_labels(logits, batch["motion"]).mean()
    return value, {"motion": jnp.mean(jnp.argmax(logits, -1) == batch["motion"])}


def fit(
    network: JudgeNetwork,
    channels: int,
    loss: Loss,
    streams: Sequence[Stream],
    steps: int,
    name: str,
) -> Params:
    """Returns the moving average of the weights after `steps` of AdamW."""
    tx = make_optimizer(OPTIMIZER, steps)
    state = init_state(init_params(network, channels, jax.random.key(0)), tx)
    step, key = make_train_step(loss, tx, ema_decay=0.99), jax.random.key(0)
    batches = DeviceBatches(make_batches(streams, seed=0))
    with batches, tqdm(total=steps, desc=name, unit="step") as bar:
        for i in range(steps):
            batch = next(batches)
            del batch["index"]
            state, metrics = step(state, {}, batch, key)
            if i % 20 == 0:
                shown = {what: f"{float(value):.2f}" for what, value in metrics.items()}
                bar.set_postfix(shown, refresh=False)
            bar.update()
    return state.ema


def train(picture_steps: int, clip_steps: int) -> Judges:
    """Returns judges trained on ordinary and styled drawings; all style families are among them."""

    def stream(kind: str, split: Split, transform: Any, size: int, weight: int) -> Stream:
        source = WorldSource(kind, COUNT, TRAIN_SEED, split=split, drawings=TRAIN_SETS)
        return Stream(source=source, transform=transform, batch_size=size, weight=weight)

    pictures = [
        stream("styled", "train", PictureTransform(), 32, 6),
        stream("styled", "held_out", PictureTransform(), 32, 3),
        stream("ordinary", "train", PictureTransform(), 32, 1),
    ]
    clips = [
        stream("clips", "train", ClipTransform(), 16, 3),
        stream("styled_clips", "train", ClipTransform(), 16, 1),
    ]
    return Judges(
        fit(PICTURES, 3, picture_loss, pictures, picture_steps, "pictures"),
        fit(CLIPS, 3 * FRAMES, clip_loss, clips, clip_steps, "clips"),
    )


def measure(judges: Judges, count: int) -> dict[str, float]:
    """Returns how often the judges are right on drawings they never saw.

    Args:
        judges: to be measured.
        count: pictures, and half as many clips, of each kind.
    """
    kinds: dict[str, tuple[str, Split, tuple[str, ...]]] = {
        "ordinary": ("ordinary", "train", TRAIN_SETS),
        "styled": ("styled", "train", TRAIN_SETS),
        "held_out_styles": ("styled", "held_out", TRAIN_SETS),
        "held_out_drawings": ("ordinary", "train", HELD_OUT_SETS),
    }
    found = {}
    for name, (kind, split, drawings) in kinds.items():
        source = WorldSource(kind, count, TEST_SEED, split=split, drawings=drawings)
        items = [source[i] for i in range(count)]
        pictures = np.concatenate([draw(item.scene) for item in items])
        labels = [CONTENTS.index(item.scene.content) for item in items]
        best = judges.contents(pictures).argmax(-1)
        found[f"content_{name}"] = float(np.mean(best == labels))
        if kind == "styled":
            partners = np.concatenate([draw(item.references[0]) for item in items])
            cosines = judges.styles(pictures) @ judges.styles(partners).T
            found[f"style_{name}"] = float(
                np.mean(
                    [
                        cosines[i, i : i + CANDIDATES].argmax() == 0
                        for i in range(count - CANDIDATES)
                    ]
                )
            )
    splits: dict[str, Split] = {"styled": "train", "held_out_styles": "held_out"}
    for name, split in splits.items():
        source = WorldSource(
            "styled_clips", count // 2, TEST_SEED, split=split, drawings=TRAIN_SETS
        )
        items = [source[i] for i in range(count // 2)]
        best = judges.motions(np.stack([draw(item.scene) for item in items])).argmax(-1)
        labels = [MOTIONS.index(item.scene.motion) for item in items]
        found[f"motion_{name}"] = float(np.mean(best == labels))
    return found


def write(judges: Judges, path: Path) -> None:
    """Writes the weights in half precision; `judging.load_judges` reads them."""
    save_file(
        {
            f"{part}/{name}": np.asarray(value, np.float16)
            for part in Judges._fields
            for name, value in getattr(judges, part).items()
        },
        path,
    )


def main() -> None:
    """Trains, writes the weights, measures what was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--picture-steps", type=int, default=2_000)
    parser.add_argument("--clip-steps", type=int, default=800)
    parser.add_argument("--count", type=int, default=400, help="pictures of each kind to measure")
    args = parser.parse_args()
    write(train(args.picture_steps, args.clip_steps), args.out)
    found: dict[str, float] = measure(load_judges(args.out), args.count)
    found |= {"picture_steps": args.picture_steps, "clip_steps": args.clip_steps}
    args.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
