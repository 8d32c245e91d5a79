"""The demo model's CLIP, from scratch on captioned pictures of the demo world.

Reproduces: nothing published; the real model's is OpenCLIP's ViT-H/14. Captions name content, place
and, of two thirds of the pictures, the style and its colours.

By default the embedded model goes on learning; launch/train_demo.sh starts from nothing.

Command:
    stylecrafter train configs/demo_clip.py --out runs/demo_clip \
        --set bundle=bundles/demo_autoencoder
    stylecrafter merge runs/demo_clip bundles/demo_clip
"""

from stylecrafter_jax.embedded import BUNDLE
from stylecrafter_jax.train.experiment import DataConfig, Experiment, OptimizerConfig, TrainConfig


def get_config() -> Experiment:
    """Returns the run."""
    return Experiment(
        stage="clip",
        bundle=str(BUNDLE),
        data=DataConfig(images="world:looks", height=64, width=64, image_batch=64),
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            schedule="cosine",
            decay_steps=1_000,
            warmup_steps=100,
            clip_norm=1.0,
        ),
        train=TrainConfig(
            steps=1_000,
            save_every=250,
            log_every=10,
            ema_decay=0.99,
            compute_dtype="float32",
            frozen_dtype="float32",
        ),
    )
