"""The demo model's autoencoder, from scratch on pictures of the demo world.

Reproduces: nothing published; the real model's autoencoder is Stable Diffusion's. Absolute error
and a little KL divergence, no perceptual or adversarial loss.

By default the embedded model goes on learning; launch/train_demo.sh starts from nothing.

Command:
    stylecrafter train configs/demo_autoencoder.py --out runs/demo_autoencoder \
        --set bundle=bundles/demo_new
    stylecrafter merge runs/demo_autoencoder bundles/demo_autoencoder
"""

from stylecrafter_jax.embedded import BUNDLE
from stylecrafter_jax.train.experiment import DataConfig, Experiment, OptimizerConfig, TrainConfig


def get_config() -> Experiment:
    """Returns the run."""
    return Experiment(
        stage="autoencoder",
        bundle=str(BUNDLE),
        data=DataConfig(images="world:looks", height=64, width=64, image_batch=16),
        optimizer=OptimizerConfig(
            learning_rate=5e-4,
            schedule="cosine",
            decay_steps=2_000,
            warmup_steps=100,
            b2=0.99,
            clip_norm=1.0,
        ),
        train=TrainConfig(
            steps=2_000,
            save_every=500,
            log_every=50,
            ema_decay=0.995,
            compute_dtype="float32",
            frozen_dtype="float32",
        ),
    )
