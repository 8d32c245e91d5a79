"""Stage 2 of the demo model: the temporal transformers on ordinary clips and styled stills.

Reproduces: StyleCrafter (arXiv 2312.00330), sec. 4.1, in miniature: a fifth of the batches are
styled pictures packed as clips, everything but the temporal transformers is frozen.

By default the embedded model goes on learning; launch/train_demo.sh starts from nothing.

Command:
    stylecrafter train configs/demo_stage2.py --out runs/demo_stage2 \
        --set bundle=bundles/demo_stage1
    stylecrafter merge runs/demo_stage2 bundles/demo --dtype float16
"""

from stylecrafter_jax.data.transforms import Drop
from stylecrafter_jax.embedded import BUNDLE
from stylecrafter_jax.train.experiment import DataConfig, Experiment, OptimizerConfig, TrainConfig


def get_config() -> Experiment:
    """Returns the run."""
    return Experiment(
        stage="stage2",
        bundle=str(BUNDLE),
        data=DataConfig(
            images="world:styled",
            videos="world:clips",
            height=64,
            width=64,
            frames=8,
            drop=Drop(text=0.05, style=0.05, both=0.05),
            image_batch=32,
            video_batch=4,
            image_share=0.2,
        ),
        optimizer=OptimizerConfig(
            name="muon",
            learning_rate=5e-4,
            schedule="cosine",
            decay_steps=1_000,
            warmup_steps=50,
            b2=0.99,
            clip_norm=1.0,
        ),
        train=TrainConfig(
            steps=1_000,
            save_every=250,
            log_every=25,
            ema_decay=0.99,
            compute_dtype="float32",
            frozen_dtype="float32",
        ),
    )
