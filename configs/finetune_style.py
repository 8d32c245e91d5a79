"""One user's style: the adapter of a trained model goes on learning on twenty or more pictures.

Reproduces: nothing published; it is stage 1 with a small batch, a low rate and a fast moving
average, from a bundle that has an adapter. Text and style are dropped now and then so that guidance
keeps working; captions without the style's name leave the style to the reference.

Hardware: one GPU with bfloat16. Duration: 1,000 steps of 8 pictures, not measured at full size.

Command, and then a bundle for `stylecrafter generate`:
    stylecrafter train configs/finetune_style.py --out runs/mine \
        --set bundle=bundles/stylecrafter data.images=my_pictures
    stylecrafter merge runs/mine bundles/mine
For samples on the way, add to --set:
        samples.every=100 'samples.styles=["my_pictures/one.jpg"]'
"""

from stylecrafter_jax.data.transforms import Drop
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
        stage="stage1",
        bundle="bundles/stylecrafter",
        data=DataConfig(
            images="my_pictures",
            height=512,
            width=512,
            flip=0.5,
            drop=Drop(text=0.05, style=0.05, both=0.05),
            image_batch=8,
        ),
        optimizer=OptimizerConfig(learning_rate=2e-5, warmup_steps=50, clip_norm=1.0),
        train=TrainConfig(steps=1_000, save_every=200, log_every=10, ema_decay=0.99),
        # Without a style, samples would be those of the base model, which stays as it is.
        samples=SampleConfig(
            prompts=("A lighthouse on a rocky coast.", "A portrait of an old sailor."),
        ),
    )
