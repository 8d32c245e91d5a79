"""Stage 2 of the paper: the temporal transformers on videos and stills, for 320x512 VideoCrafter.

Reproduces: StyleCrafter (arXiv 2312.00330), sec. 4.1: the temporal transformers train for 20,000
steps, adapter and all else frozen; a batch is one clip of 16 frames or 16 pictures on each of 8
GPUs, pictures in 20 % of the batches. Videos were a part of WebVid-10M. The released v1.1 weights
had 500 more steps on videos without watermark.

Not published: learning rate, optimizer, drop rates, frame stride, the part of WebVid, and which
frame is a video's style reference. Here: AdamW at 1e-4 falling linearly to 1 %, which is the
schedule in the original's config file; every fourth frame; a random frame of the clip.

Hardware and duration: 8 A100 and under three days for both stages (paper). Here 8 clips or 128
pictures go through one device in 8 parts; with 8 devices, set train.accumulate=1, with 4 of them 2.
Nobody has measured the whole run.

Command:
    stylecrafter train configs/stage2_t2v.py --out runs/stage2 \
        --set bundle=bundles/stage1 data.images=data/styled data.videos=data/webvid.csv
Samples without a style are made on the way; for styles of yours, add:
        'samples.styles=["painting.jpg"]'
"""

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
        stage="stage2",
        bundle="bundles/stage1",
        data=DataConfig(
            images="data/styled",
            videos="data/webvid.csv",
            height=320,
            width=512,
            frames=16,
            stride=(4, 4),
            image_batch=128,
            video_batch=8,
            image_share=0.2,
            threads=8,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-4, schedule="linear", decay_steps=20_000),
        train=TrainConfig(steps=20_000, accumulate=8, remat="full"),
        samples=SampleConfig(
            every=1_000,
            prompts=("A wolf walking stealthily through the forest.", "Waves at a rocky coast."),
        ),
    )
