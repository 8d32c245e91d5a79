"""Which code answers a case, and with which tolerance."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.parity import diffusion_cases, media_cases, model_cases, trajectory_cases
from tests.parity.case import Case, Check, compare

Answers = dict[str, Any]


class UnknownKind(Exception):
    """The case belongs to a family that this project does not build yet."""


KINDS: dict[str, Callable[[Case], Answers]] = {
    "unet": model_cases.unet,
    "style_transformer": model_cases.style_transformer,
    "scale_encoder": model_cases.scale_encoder,
    "vae": model_cases.vae,
    "vae_video": model_cases.vae_video,
    "openclip": model_cases.openclip,
    "norm_probes": model_cases.norm_probes,
    "clip_preprocess": media_cases.clip_preprocess,
    "tokenizer": media_cases.tokenizer,
    "schedule": diffusion_cases.schedule,
    "ddim": trajectory_cases.ddim,
    "pipeline": trajectory_cases.pipeline,
}
# Cases of other families carry no kind; these of them test what every family shares.
MODULES = re.compile(r"diffusers [\d.]+ \w+Scheduler")


def checks(case: Case) -> list[Check]:
    """Runs a case and compares everything it has a value for.

    Raises:
        UnknownKind: no code of ours answers it.
    """
    kind = case.info.get("kind")
    if kind == "training_loss":
        return trajectory_cases.training_loss(case)
    if kind in KINDS:
        return [check(case, name, ours) for name, ours in KINDS[kind](case).items()]
    if kind is None and MODULES.fullmatch(case.info.get("module", "")):
        answers = diffusion_cases.samplers(case)
        return [sampler_check(case, name, ours) for name, ours in answers.items()]
    raise UnknownKind(f"kind {kind!r}" if kind else f"module {case.info.get('module')!r}")


def sampler_check(case: Case, name: str, ours: Any) -> Check:
    """Compares one array of a sampler case; whole timesteps are exact, others within 0.01."""
    theirs = case.outputs[name]
    if name.endswith("timesteps"):
        whole = np.all(theirs == np.round(theirs))
        return compare(name, ours, theirs, atol=0.0 if whole else 0.01, rtol=0.0)
    return compare(name, ours, theirs, atol=0.0, rtol=case.info["tolerance"]["max_rel"])


def check(case: Case, name: str, ours: Any) -> Check:
    """Compares one array under its case's rule."""
    tolerance = case.info["tolerance"]
    atol, rtol = tolerance["atol"], tolerance["rtol"]
    theirs = case.outputs[name]
    if theirs.dtype == "float16" and "atol_float16" in tolerance:
        atol = tolerance["atol_float16"]
    if case.info["kind"] == "pipeline" and name in trajectory_cases.SAMPLER_INPUTS:
        atol, rtol = 1e-4, 1e-4
    return compare(name, ours, theirs, atol=atol, rtol=rtol)
