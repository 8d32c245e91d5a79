"""DINO-Style: the cosine of CLIP-Style with the embeddings of a function that the user names.

The paper measures with a DINO (Caron et al. 2021) and does not say which one or which of its
tokens; no weights are shipped here. The function takes `uint8 [n, h, w, 3]`, images of one size,
and returns `float [n, d]`; resizing and normalising are its own. A file `my_dino.py` with

    def embed(images):
        return model(preprocess(images))

is named `my_dino:embed`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from stylecrafter_jax.metrics.clip_scores import style_score

Embed = Callable[[np.ndarray], Any]


def dino_style(
    frames: UInt8[np.ndarray, "f h w 3"],
    references: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    embed: Embed,
) -> float:
    """Returns the mean cosine between the frames and the mean direction of the references.

    Raises:
        ValueError: the function returns something else than one vector per image.
    """
    return style_score(
        _embedded(embed, frames),
        np.concatenate([_embedded(embed, reference[None]) for reference in references]),
    )


def _embedded(embed: Embed, images: np.ndarray) -> np.ndarray:
    found = np.asarray(embed(images), np.float64)
    if found.ndim != 2 or len(found) != len(images):
        raise ValueError(
            f"the DINO function returned shape {found.shape} for {len(images)} images; "
            "wanted one vector each"
        )
    return found
