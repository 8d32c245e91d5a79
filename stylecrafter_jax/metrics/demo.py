"""How well a model of the demo world follows prompt and style that it never saw.

Clips are generated for `world.held_out.cases` and judged by `judges`; the true clips of the same
cases, drawn by the world, go through the same judges, and their figures are the ceilings.

    content_accuracy      the judge finds the prompt's content, of twenty
    content_leak          the judge finds the reference's content where the prompt has another
    style_retrieval_top1  the clip's style is nearest to its own reference, of ten
    motion_accuracy       the judge finds the prompt's motion, of seven, standing still among them
    clip_temp             mean cosine of adjacent frames in the model's own CLIP
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8

from stylecrafter_jax.files import write_json
from stylecrafter_jax.generate import StyleCrafter
from stylecrafter_jax.judges.judging import Judges
from stylecrafter_jax.media.video import contact_sheet, write_frames
from stylecrafter_jax.metrics.bootstrap import mean_interval
from stylecrafter_jax.metrics.clip_scores import ClipEmbedder, temporal_score
from stylecrafter_jax.options import Resolved
from stylecrafter_jax.request import Request
from stylecrafter_jax.world.contents import CONTENTS
from stylecrafter_jax.world.drawing import draw
from stylecrafter_jax.world.held_out import REFERENCE_CONTENTS, STYLES, Case, references
from stylecrafter_jax.world.scenes import MOTIONS

Clip = UInt8[np.ndarray, "f h w 3"]
Scores = dict[str, Float64[np.ndarray, " n"]]
# Measure -> its name for the true clips.
TRUE = {
    "content_accuracy": "content_ceiling",
    "content_leak": "content_leak_real",
    "style_retrieval_top1": "style_ceiling",
    "motion_accuracy": "motion_ceiling",
    "clip_temp": "clip_temp_real",
}
SHEET_ROWS = 20


def generate_cases(
    model: StyleCrafter, cases: Sequence[Case], options: Resolved, *, batch_size: int
) -> Iterator[Clip]:
    """Yields a clip for each case; the case's number is the random index."""
    pictures = references()
    for first in range(0, len(cases), batch_size):
        requests = [
            Request(case.prompt, (pictures[case.style],), None, first + i)
            for i, case in enumerate(cases[first : first + batch_size])
        ]
        count = len(requests)  # all batches have one shape, so that one program serves them
        requests += requests[-1:] * (batch_size - count)
        yield from model.generate(requests, options)[:count]


def measure(
    clips: Sequence[Clip], cases: Sequence[Case], judges: Judges, clip: ClipEmbedder
) -> Scores:
    """Returns one value per case and measure: how well its clip shows it.

    Generated and true clips are measured alike. A clip's content is the one whose probabilities
    over the frames have the largest product; its style is the mean direction of its frames.

    Args:
        clips: of the length that the judges know, or pictures: those have neither
            `motion_accuracy` nor `clip_temp`.
        cases: one for each clip.
        judges: of content, style and motion.
        clip: embeds frames for `clip_temp`.
    """
    frames, number = np.concatenate(clips), len(clips)
    seen = judges.contents(frames).reshape(number, -1, len(CONTENTS)).sum(1).argmax(-1)
    asked = np.array([CONTENTS.index(case.scene.content) for case in cases])
    given = np.array([CONTENTS.index(REFERENCE_CONTENTS[case.style]) for case in cases])
    embedded = judges.styles(frames)
    styles = embedded.reshape(number, -1, embedded.shape[-1]).mean(1)
    nearest = (styles @ judges.styles(np.stack(references())).T).argmax(-1)
    found = {
        "content_accuracy": seen == asked,
        "content_leak": (seen == given) & (asked != given),
        "style_retrieval_top1": nearest == [case.style for case in cases],
    }
    if len(frames) > number:
        motions = judges.motions(np.stack(clips)).argmax(-1)
        found["motion_accuracy"] = motions == [MOTIONS.index(case.scene.motion) for case in cases]
        found["clip_temp"] = np.array([temporal_score(clip.images(list(c))) for c in clips])
    return {name: values.astype(np.float64) for name, values in found.items()}


def report(
    out: Path,
    cases: Sequence[Case],
    clips: Sequence[Clip],
    judges: Judges,
    clip: ClipEmbedder,
    notes: dict[str, Any],
) -> list[Path]:
    """Writes `metrics.json` and `sheet.png` into a folder, and returns their paths.

    Args:
        out: the folder; it exists.
        cases: what was asked for.
        clips: what was generated, one for each case.
        judges: see `measure`.
        clip: see `measure`.
        notes: what generated them.
    """
    found = measure(clips, cases, judges, clip)
    drawn = [draw(case.scene) for case in cases]
    true = measure(drawn, cases, judges, clip)
    values = {
        **found,
        **{TRUE[name]: value for name, value in true.items()},
    }
    means = {name: float(value.mean()) for name, value in values.items()}
    table = out / "metrics.json"
    write_json(
        table,
        {
            **means,
            "intervals": {name: mean_interval(value) for name, value in values.items()},
            "chance": {
                "content_accuracy": 1 / len(CONTENTS),
                "style_retrieval_top1": 1 / len(STYLES),
                "motion_accuracy": 1 / len(MOTIONS),
            },
            "cases": [
                {"prompt": case.prompt, "style": case.style}
                | {name: float(value[i]) for name, value in values.items()}
                for i, case in enumerate(cases)
            ],
            "notes": notes,
        },
    )
    return [table, _write_sheet(out / "sheet.png", cases, clips, drawn)]


def _write_sheet(
    path: Path, cases: Sequence[Case], clips: Sequence[Clip], true: Sequence[Clip]
) -> Path:
    """Writes the first cases: reference, frames of the clip, and the true clip's middle frame."""
    pictures = references()
    rows = [
        np.concatenate([pictures[case.style][None], clip, drawn[len(drawn) // 2][None]])
        for case, clip, drawn in zip(cases[:SHEET_ROWS], clips, true, strict=False)
    ]
    sheet = contact_sheet(rows, len(rows[0])).repeat(2, axis=0).repeat(2, axis=1)
    write_frames(sheet[None], path, fps=1)
    return path
