"""Our values for the cases `tokenizer` and `clip_preprocess`."""

import json

import numpy as np
from einops import rearrange
from PIL import Image

from stylecrafter_jax.media.images import clip_pixels
from stylecrafter_jax.tokenizer import Tokenizer
from tests.parity.case import Case

# Stored as float16, hence compared with `atol_float16` of the case instead of `atol`.
FLOAT16_OUTPUTS = ("full_0", "full_1")


def tokenizer(case: Case) -> dict[str, np.ndarray]:
    prompts = json.loads((case.path / "prompts.json").read_text(encoding="utf-8"))
    return {"tokens": Tokenizer.load(context_length=case.config["context_length"])(prompts)}


def clip_preprocess(case: Case) -> dict[str, np.ndarray]:
    settings = {k: tuple(case.config[k]) for k in ("mean", "std") if k in case.config}
    ours = {}
    for i, row in enumerate(case.info["images"]):
        image = np.asarray(Image.open(case.path / row["png"]).convert("RGB"))
        pixels = clip_pixels(image[None], size=case.config["size"], **settings)
        full = rearrange(np.asarray(pixels), "1 h w c -> c h w")
        ours |= {
            f"full_{i}": full,
            f"crop_{i}": full[:, 80:144, 96:160],
            f"corner_{i}": full[:, :24, :24],
            f"corner2_{i}": full[:, -24:, -24:],
        }
    return ours
