"""One thing to generate: a prompt, its references with their weights, and its random index."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

StyleImage = str | Path | Image.Image | np.ndarray  # see `load_style_image`
LAST_INDEX = 2**32 - 1  # what `jax.random.fold_in` takes


class Request(NamedTuple):
    """One thing to generate.

    Attributes:
        prompt: what to show.
        styles: references of the style; none is the plain model.
        weights: how much each reference counts; None is 1 for each, 0 is the same as leaving it
            out and 2 the same as giving it twice.
        index: with the seed it decides the random numbers.
    """

    prompt: str
    styles: Sequence[StyleImage] = ()
    weights: Sequence[float] | None = None
    index: int = 0


def check_requests(requests: Sequence[Request], *, styled: bool) -> None:
    """Checks what a batch of requests says; style images are not looked at.

    Args:
        requests: the batch.
        styled: the model has a style adapter.

    Raises:
        ValueError: a field is out of range, only some of the requests have style images, or the
            model cannot use them.
    """
    if not requests:
        raise ValueError("there is no prompt")
    for request in requests:
        check_prompt(request.prompt)
        reference_weights(request)
        if not 0 <= request.index <= LAST_INDEX:
            raise ValueError(f"index must be between 0 and {LAST_INDEX}, got {request.index}")
    with_style = sum(bool(request.styles) for request in requests)
    if with_style not in (0, len(requests)):
        raise ValueError(f"{with_style} of the batch's {len(requests)} prompts have style images")
    if with_style and not styled:
        raise ValueError("a style image was given, but this model has no style adapter")


def check_prompt(prompt: object) -> None:
    """Raises ValueError if a prompt is no text."""
    if not isinstance(prompt, str):
        raise ValueError(f"a prompt must be a text, got {prompt!r}")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the prompt {prompt!a} is not valid Unicode") from error


def reference_weights(request: Request) -> list[float]:
    """Returns one weight per reference of a request.

    Raises:
        ValueError: there is another number of them, or they are negative, not finite or all 0.
    """
    if request.weights is None:
        return [1.0] * len(request.styles)
    given = [float(weight) for weight in request.weights]
    if len(given) != len(request.styles):
        raise ValueError(f"{len(given)} style weights for {len(request.styles)} style images")
    if not all(map(math.isfinite, given)) or min(given, default=1) < 0 or not any(given or [1]):
        raise ValueError(f"style weights must be at least 0 and not all 0, got {given}")
    return given
