"""CLIP-Text, CLIP-Style and CLIP-Temp: cosines of embedded prompts, frames and references.

    CLIP-Text  = mean over frames of cos(frame, prompt)
    CLIP-Style = mean over frames of cos(frame, mean of the references)
    CLIP-Temp  = mean over adjacent frames of cos(frame, next frame)

Source: StyleCrafter, appendix B.1, which names these cosines but not how pixels are resized.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from stylecrafter_jax.checkpoints.bundle import load_bundle
from stylecrafter_jax.config import ModelConfig
from stylecrafter_jax.media.images import clip_pixels
from stylecrafter_jax.models.networks import networks, parameter_shapes
from stylecrafter_jax.tokenizer import Tokenizer

# Images go through the tower this many at a time, so that its program is compiled once.
BATCH = 16


def text_score(frames: Float[np.ndarray, "f d"], prompt: Float[np.ndarray, " d"]) -> float:
    """Returns the mean cosine between a prompt and the frames."""
    return float(np.mean(_unit(frames) @ _unit(prompt)))


def style_score(frames: Float[np.ndarray, "f d"], references: Float[np.ndarray, "r d"]) -> float:
    """Returns the mean cosine between the frames and the mean direction of the references."""
    return float(np.mean(_unit(frames) @ _unit(_unit(references).mean(axis=0))))


def temporal_score(frames: Float[np.ndarray, "f d"]) -> float:
    """Returns the mean cosine between adjacent frames.

    Raises:
        ValueError: there is only one frame.
    """
    if len(frames) < 2:
        raise ValueError(f"adjacent frames need at least 2 frames, got {len(frames)}")
    unit = _unit(frames)
    return float(np.mean(np.sum(unit[:-1] * unit[1:], axis=-1)))


def _unit(x: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
    """Returns vectors scaled to length 1; one of length 0 has no direction and becomes NaN."""
    x = np.asarray(x, np.float64)
    with np.errstate(invalid="ignore"):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)


class ClipEmbedder:
    """The CLIP of a bundle: prompts and images to vectors in one space.

    Attributes:
        image_size: pixels along a side, as the image tower wants them.
    """

    def __init__(self, config: ModelConfig, params: Mapping[str, Any], tokenizer: Tokenizer):
        """Takes the parameters of both towers; they go to the default device."""
        self.image_size = config.clip.vision.image_size
        self._tokenizer = tokenizer
        self._params = jax.device_put(dict(params))
        nets = networks(config)
        self._embed_text = jax.jit(_precise(nets.embed_text))
        self._embed_image = jax.jit(_precise(nets.embed_image))

    @classmethod
    def load(cls, bundle: Path) -> "ClipEmbedder":
        """Loads both towers of a bundle folder.

        Raises:
            CheckpointError: the folder is no bundle, or lacks one of them.
        """
        parts = ("text_encoder", "image_encoder")
        config, params = load_bundle(bundle, expected=parameter_shapes, parts=parts)
        tokenizer = Tokenizer.in_bundle(bundle, config.clip.text.context_length)
        return cls(config, params, tokenizer)

    def text(self, prompt: str) -> Float32[np.ndarray, " d"]:
        """Returns the embedding of a prompt; what does not fit the tower is cut off."""
        ids = jnp.asarray(self._tokenizer([prompt]))
        end = jnp.asarray(self._tokenizer.end, ids.dtype)
        return np.asarray(self._embed_text(self._params, ids, end), np.float32)[0]

    def images(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> Float32[np.ndarray, "n d"]:
        """Returns the embedding of each image."""
        found = []
        for first in range(0, len(images), BATCH):
            batch = images[first : first + BATCH]
            squares = np.stack([centre_square(image, self.image_size) for image in batch])
            squares = np.pad(squares, ((0, BATCH - len(batch)), (0, 0), (0, 0), (0, 0)))
            embedded = self._embed_image(self._params, clip_pixels(squares, size=self.image_size))
            found.append(np.asarray(embedded, np.float32)[: len(batch)])
        return np.concatenate(found)


def _precise(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function in full float32: accelerators multiply in fewer bits unless told to."""

    def run(*args: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return function(*args)

    return run


def centre_square(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "s s 3"]:
    """Returns the centre of an image whose shorter side was resized to `size`, bicubic.

    Source: open_clip, src/open_clip/transform.py, image_transform(is_train=False): Resize and
    CenterCrop of torchvision. The style adapter's own preprocessing (`clip_pixels`) squeezes
    a picture into the square instead.
    """
    h, w, _ = image.shape
    longer = int(size * max(h, w) / min(h, w))
    h, w = (longer, size) if h > w else (size, longer)
    resized = np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.BICUBIC))
    top, left = round((h - size) / 2.0), round((w - size) / 2.0)
    return resized[top : top + size, left : left + size]
