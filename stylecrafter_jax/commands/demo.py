"""`stylecrafter demo`: the embedded model draws some prompts in styles it never saw."""

import argparse

import numpy as np
from PIL import Image

from stylecrafter_jax import embedded
from stylecrafter_jax.generate import StyleCrafter
from stylecrafter_jax.media.video import contact_sheet, write_frames
from stylecrafter_jax.options import Options
from stylecrafter_jax.programs import keep_on_disk
from stylecrafter_jax.request import Request
from stylecrafter_jax.world.held_out import references

# Prompt and the number of its reference in `held_out.references`.
CLIPS = (
    ("a penguin moving left in the snow", 0),
    ("a rocket rising at night", 7),
    ("a car moving right at sunset", 2),
    ("a mushroom growing on grass", 9),
    ("a sailboat on the beach", 5),
)
ENLARGED = 3  # for looking at: the model's clips have 64x64 pixels


def run(args: argparse.Namespace) -> int:
    """Writes demo.mp4, demo_sheet.png (references in its first column) and the references."""
    keep_on_disk()
    model = StyleCrafter.load(embedded.BUNDLE)
    drawn = references()
    pictures = [drawn[number] for _, number in CLIPS]
    requests = [
        Request(prompt, (picture,), None, i)
        for i, ((prompt, _), picture) in enumerate(zip(CLIPS, pictures, strict=True))
    ]
    clips = model.generate(requests, Options(seed=args.seed))
    args.out.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(args.out / f"style_{i}.png")
    video, sheet = args.out / "demo.mp4", args.out / "demo_sheet.png"
    write_frames(_enlarged(np.concatenate(list(clips), axis=2)), video, fps=model.config.size.fps)
    rows = [np.concatenate([p[None], clip]) for p, clip in zip(pictures, clips, strict=True)]
    write_frames(_enlarged(contact_sheet(rows, len(rows[0]))[None]), sheet, fps=1)
    for i, (prompt, _) in enumerate(CLIPS):
        print(f"{prompt!r} in the style of {args.out / f'style_{i}.png'}")
    print(video)
    print(sheet)
    return 0


def _enlarged(frames: np.ndarray) -> np.ndarray:
    return frames.repeat(ENLARGED, axis=1).repeat(ENLARGED, axis=2)
