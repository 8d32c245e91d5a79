"""The stages of training as data: what trains, on what, by which loss."""

import dataclasses
from typing import Literal

from stylecrafter_jax.models.unet_video import Mode
from stylecrafter_jax.params import ADAPTER, PARTS, TEMPORAL

StageName = Literal["autoencoder", "clip", "base", "stage1", "stage2", "joint"]
Goal = Literal["reconstruction", "contrast", "denoising"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """What a stage is: which weights train, and how the UNet sees pictures and videos.

    Attributes:
        trainable: regular expression over parameter names.
        image_mode: how batches of pictures are seen; None: the stage has none.
        video_mode: how batches of videos are seen; None: the stage has none.
        styled: batches come with style references.
        goal: which loss.
        parts: of the model that the stage uses, trained or frozen.
    """

    trainable: str
    image_mode: Mode | None
    video_mode: Mode | None
    styled: bool
    goal: Goal = "denoising"
    parts: tuple[str, ...] = PARTS


# `autoencoder` and `clip` train what all others keep frozen; a released model brings both.
# Stage 1 trains the adapter on pictures, stage 2 the temporal transformers on videos and on stills
# packed as clips (paper, sec. 4.1). `base` trains the text-to-video model itself, `joint` adapter
# and temporal transformers at once (paper, Table 5).
STAGES: dict[StageName, Stage] = {
    "autoencoder": Stage(
        trainable=r"^vae/",
        image_mode="image",
        video_mode=None,
        styled=False,
        goal="reconstruction",
        parts=("vae",),
    ),
    "clip": Stage(
        trainable=r"^(text|image)_encoder/",
        image_mode="image",
        video_mode=None,
        styled=False,
        goal="contrast",
        parts=("text_encoder", "image_encoder"),
    ),
    "base": Stage(
        trainable=r"^unet/(?!.*_style/)",
        image_mode="image",
        video_mode="video",
        styled=False,
        parts=("unet", "vae", "text_encoder"),
    ),
    "stage1": Stage(trainable=ADAPTER, image_mode="image", video_mode=None, styled=True),
    "stage2": Stage(trainable=TEMPORAL, image_mode="stills", video_mode="video", styled=True),
    "joint": Stage(
        trainable=f"{ADAPTER}|{TEMPORAL}", image_mode="stills", video_mode="video", styled=True
    ),
}
