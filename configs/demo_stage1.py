"""Stage 1 of the demo model: the style adapter on styled pictures.

Reproduces: StyleCrafter (arXiv 2312.00330), sec. 4.1, in miniature. Target and reference share the
style and nothing else, and captions have no style words, so the style can only come from the
reference.

By default the embedded model goes on learning; launch/train_demo.sh starts from nothing.

Command:
    stylecrafter train configs/demo_stage1.py --out runs/demo_stage1 \
        --set bundle=bundles/demo_base
    stylecrafter merge runs/demo_stage1 bundles/demo_stage1
"""

from stylecrafter_jax.data.transforms import Drop
from stylecrafter_jax.embedded import BUNDLE
from stylecrafter_jax.train.experiment import DataConfig, Experiment, OptimizerConfig, TrainConfig


def get_config() -> Experiment:
    """Returns the run."""
    return Experiment(
        stage="stage1",
        bundle=str(BUNDLE),
        data=DataConfig(
            images="world:styled",
            height=64,
            width=64,
            drop=Drop(text=0.05, style=0.05, both=0.05),
            image_batch=32,
        ),
        optimizer=OptimizerConfig(
            name="muon",
            learning_rate=1e-3,
            schedule="cosine",
            decay_steps=3_000,
            warmup_steps=100,
            b2=0.99,
            clip_norm=1.0,
        ),
        train=TrainConfig(
            steps=3_000,
            save_every=500,
            log_every=50,
            ema_decay=0.995,
            compute_dtype="float32",
            frozen_dtype="float32",
        ),
    )
