"""What can be measured of a finished video: a table of metrics, and the functions behind it."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

from stylecrafter_jax.checkpoints.bundle import manifest_hash, parts_of, read_manifest
from stylecrafter_jax.metrics.clip_scores import (
    ClipEmbedder,
    style_score,
    temporal_score,
    text_score,
)
from stylecrafter_jax.metrics.dino import dino_style
from stylecrafter_jax.metrics.flow import DenseInverseSearch
from stylecrafter_jax.metrics.hooks import load_hook
from stylecrafter_jax.metrics.warping import correct_error, evalcrafter_error


class Metric(NamedTuple):
    """How a metric is called, which way is better, and how many frames it needs."""

    title: str
    better: Literal["higher", "lower"]
    frames: int = 1


METRICS = {
    "clip_text": Metric("CLIP-Text", "higher"),
    "clip_style": Metric("CLIP-Style", "higher"),
    "clip_temp": Metric("CLIP-Temp", "higher", frames=2),
    "warping_correct": Metric("Warping error (correct)", "lower", frames=2),
    "warping_evalcrafter": Metric("Warping error (evalcrafter)", "lower", frames=2),
    "dino_style": Metric("DINO-Style", "higher"),
}
CLIP_METRICS = ("clip_text", "clip_style", "clip_temp")
WARPING = {"warping_correct": correct_error, "warping_evalcrafter": evalcrafter_error}
# Part of what identifies a value: raise it when a metric's definition changes.
DEFINITION = 1


class Case(NamedTuple):
    """A finished video with what it was made of."""

    frames: UInt8[np.ndarray, "f h w 3"]
    prompt: str
    references: Sequence[UInt8[np.ndarray, "_ _ 3"]]


class Measure(NamedTuple):
    """A function that measures some metrics of one video at a time.

    Attributes:
        names: the metrics.
        identity: what decides their values besides the video, its prompt and references.
        score: (case, names) -> the value of each of these names.
    """

    names: tuple[str, ...]
    identity: str
    score: Callable[[Case, Sequence[str]], dict[str, float]]


def choose_names(asked: Sequence[str] | None, *, still: bool, dino: bool) -> list[str]:
    """Returns the metrics to measure; all that are possible unless some are asked for.

    Args:
        asked: names, or None.
        still: there is one frame only.
        dino: a DINO function was named.

    Raises:
        ValueError: a name is unknown, comes twice or cannot be measured here.
    """
    possible = [
        name
        for name, metric in METRICS.items()
        if (dino or name != "dino_style") and not (still and metric.frames > 1)
    ]
    if asked is None:
        return possible
    for name in asked:
        if name not in METRICS:
            raise ValueError(f"unknown metric {name!r}; there are {', '.join(METRICS)}")
        if name == "dino_style" and not dino:
            raise ValueError("dino_style needs --dino module:function; no weights are shipped")
        if name not in possible:
            raise ValueError(f"{name} compares adjacent frames, and a picture has one")
    if len(set(asked)) < len(asked) or not asked:
        raise ValueError(f"wanted each metric once, got {', '.join(asked) or 'none'}")
    return [name for name in possible if name in asked]


def make_measures(
    names: Sequence[str], bundle: Path, *, flow: str | None = None, dino: str | None = None
) -> list[Measure]:
    """Returns what measures `names`; CLIP is loaded when it is first used.

    Args:
        names: what `choose_names` returned.
        bundle: the bundle whose CLIP measures.
        flow: `module:function` of an optical flow; None is OpenCV's.
        dino: `module:function` of a DINO.

    Raises:
        ValueError: the bundle has no CLIP towers, OpenCV is absent, or a function cannot be loaded.
    """
    measures = []
    clip = tuple(name for name in names if name in CLIP_METRICS)
    if clip:
        measures.append(_clip_measure(clip, bundle))
    warping = tuple(name for name in names if name in WARPING)
    if warping:
        measures.append(_warping_measure(warping, flow))
    if "dino_style" in names and dino is not None:
        function, identity = load_hook(dino)

        def score(case: Case, names: Sequence[str]) -> dict[str, float]:
            return {name: dino_style(case.frames, case.references, function) for name in names}

        measures.append(Measure(("dino_style",), identity, score))
    return measures


def _clip_measure(names: tuple[str, ...], bundle: Path) -> Measure:
    missing = {"text_encoder", "image_encoder"} - set(parts_of(read_manifest(bundle)))
    if missing:
        raise ValueError(f"{bundle} cannot measure CLIP: it has no {', '.join(sorted(missing))}")

    @functools.cache
    def embedder() -> ClipEmbedder:
        return ClipEmbedder.load(bundle)

    def score(case: Case, names: Sequence[str]) -> dict[str, float]:
        clip, found = embedder(), {}
        frames = clip.images(list(case.frames))
        if "clip_text" in names:
            found["clip_text"] = text_score(frames, clip.text(case.prompt))
        if "clip_style" in names:
            found["clip_style"] = style_score(frames, clip.images(case.references))
        if "clip_temp" in names:
            found["clip_temp"] = temporal_score(frames)
        return found

    return Measure(names, f"CLIP of the bundle {manifest_hash(bundle)}", score)


def _warping_measure(names: tuple[str, ...], flow: str | None) -> Measure:
    if flow is None:
        function = DenseInverseSearch()
        identity = function.name
    else:
        function, identity = load_hook(flow)

    def score(case: Case, names: Sequence[str]) -> dict[str, float]:
        return {name: WARPING[name](case.frames, function) for name in names}

    return Measure(names, identity, score)
