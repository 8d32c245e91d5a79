"""The demo model's text-to-video base, from scratch on pictures of many looks and ordinary clips.

Reproduces: nothing published; the real base is VideoCrafter. The base must have seen styled
pictures, with words for their styles, before it is frozen: a base that knows one look cannot be
styled by an adapter alone. The world is drawn on the fly, so no picture comes twice.

Three runs: pictures alone, since a clip costs as much as eight; clips with many of the noisiest
timesteps, the only ones where a word such as "left" is needed to tell where something goes; both,
to settle. The v loss has no weights: shapes are decided where there is most noise.

By default the embedded model goes on learning; launch/train_demo.sh starts from nothing.

Command:
    stylecrafter train configs/demo_base.py --out runs/demo_pictures \
        --set bundle=bundles/demo_clip data.videos=null
    stylecrafter merge runs/demo_pictures bundles/demo_pictures
    stylecrafter train configs/demo_base.py --out runs/demo_motion \
        --set bundle=bundles/demo_pictures train.steps=4000 \
        loss.timestep_shift=8 data.image_share=0.2
    stylecrafter merge runs/demo_motion bundles/demo_motion
    stylecrafter train configs/demo_base.py --out runs/demo_base \
        --set bundle=bundles/demo_motion train.steps=500 train.ema_decay=0.99 \
        optimizer.learning_rate=5e-4 optimizer.schedule=cosine optimizer.decay_steps=500
    stylecrafter merge runs/demo_base bundles/demo_base
"""

from stylecrafter_jax.data.transforms import Drop
from stylecrafter_jax.diffusion.guidance import Guidance
from stylecrafter_jax.embedded import BUNDLE
from stylecrafter_jax.train.experiment import (
    DataConfig,
    Experiment,
    OptimizerConfig,
    SampleConfig,
    TrainConfig,
)


def get_config() -> Experiment:
    """Returns the run."""
    return Experiment(
        stage="base",
        bundle=str(BUNDLE),
        data=DataConfig(
            images="world:looks",
            videos="world:clips",
            height=64,
            width=64,
            frames=8,
            drop=Drop(text=0.1),
            image_batch=32,
            video_batch=4,
            image_share=0.5,
        ),
        optimizer=OptimizerConfig(
            name="muon", learning_rate=1e-3, warmup_steps=100, b2=0.99, clip_norm=1.0
        ),
        train=TrainConfig(
            steps=8_000,
            save_every=500,
            log_every=50,
            ema_decay=0.998,
            compute_dtype="float32",
            frozen_dtype="float32",
        ),
        samples=SampleConfig(
            every=1_000,
            prompts=(
                "a cat on grass",
                "a car moving left at sunset",
                "a penguin in the snow, blue neon",
                "a rocket rising at night",
                "a house on the beach, orange watercolor",
                "a snowman, green blueprint",
            ),
            steps=25,
            sampler="dpmsolver++",
            guidance=Guidance(text=3.0, style=0.0),
        ),
    )
