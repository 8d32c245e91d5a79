"""Stage 1 of the paper: the style adapter on pictures, for 320x512 VideoCrafter.

Reproduces: StyleCrafter (arXiv 2312.00330), sec. 4.1: query transformer, style K/V with their norm,
and scale predictor train for 40,000 steps on batches of 256 pictures of 512x512 (32 on each of 8
GPUs), everything else frozen; the style is a random 512 crop of the same picture at a shorter side
of 800. Pictures were WikiArt and LAION-Aesthetics above 6.5, with BLIP-2 captions without style
phrases.

Not published: learning rate, optimizer, warm-up, moving average, drop rates and the number of
pictures. Here: AdamW at 1e-4 with weight decay 0.01 and drops of 5 % each, as IP-Adapter, the
ancestor of the released SDXL trainer.

Hardware and duration: 8 A100 and under three days for both stages (paper). Here a batch goes
through all devices of a machine in 16 parts of 16 pictures; with 8 or more of them,
train.accumulate=4 or less is faster. Nobody has measured the whole run.

Command:
    stylecrafter train configs/stage1_t2i.py --out runs/stage1 \
        --set bundle=bundles/videocrafter data.images=data/styled
and, for samples on the way in styles of yours:
        samples.every=1000 'samples.styles=["painting.jpg"]'
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
        bundle="bundles/videocrafter",
        data=DataConfig(
            images="data/styled",
            height=512,
            width=512,
            drop=Drop(text=0.05, style=0.05, both=0.05),
            image_batch=256,
            threads=8,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-4, weight_decay=0.01),
        train=TrainConfig(steps=40_000, accumulate=16),
        # Without a style, samples would be those of the base model, which stays as it is.
        samples=SampleConfig(
            prompts=("A lighthouse on a rocky coast.", "A wolf walking through the forest."),
        ),
    )
