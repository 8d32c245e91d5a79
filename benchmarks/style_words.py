"""Whether a base of the demo world draws the styles that its prompts name: the gate before stage 1.

    python benchmarks/style_words.py BASE OUT [--count 100] [--batch-size 20]

A frozen base that only knows the ordinary look cannot be styled by an adapter. Pictures of unseen
combinations of content and place are drawn from prompts such as "a cat on grass, blue neon",
without a reference; judges find the content, and which of ten styles of ten trained families is
nearest. OUT gets `style_words.json` and a sheet: a true picture of a style, then ten drawn ones.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from stylecrafter_jax import embedded
from stylecrafter_jax.checkpoints.bundle import manifest_hash
from stylecrafter_jax.files import write_json
from stylecrafter_jax.generate import StyleCrafter
from stylecrafter_jax.judges.judging import load_judges
from stylecrafter_jax.media.video import contact_sheet, write_frames
from stylecrafter_jax.metrics.bootstrap import mean_interval
from stylecrafter_jax.options import Options
from stylecrafter_jax.request import Request
from stylecrafter_jax.world.contents import CONTENTS
from stylecrafter_jax.world.drawing import caption, draw
from stylecrafter_jax.world.held_out import SEED
from stylecrafter_jax.world.source import WorldSource
from stylecrafter_jax.world.style_tools import StyleParameters
from stylecrafter_jax.world.styles import TRAIN_FAMILIES, Style

ROW = 10
STYLES = tuple(
    Style(family, StyleParameters(i / ROW, (i / ROW + 0.4) % 1.0, 0.5, 0.5), i)
    for i, family in enumerate(TRAIN_FAMILIES[:: len(TRAIN_FAMILIES) // ROW][:ROW])
)


def main() -> None:
    """Draws, judges and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=20)
    args = parser.parse_args()
    source = WorldSource("styled", args.count, SEED, split="held_out")
    scenes = [
        dataclasses.replace(source[i].scene, style=STYLES[i % ROW]) for i in range(args.count)
    ]
    requests = [Request(caption(scene, True), index=i) for i, scene in enumerate(scenes)]
    model, judges = StyleCrafter.load(args.base), load_judges(embedded.JUDGES)
    options = Options(image=True).resolved(model.config)
    batches = range(0, args.count, args.batch_size)
    drawn = np.concatenate(
        [model.generate(requests[i : i + args.batch_size], options)[:, 0] for i in batches]
    )
    true = np.concatenate([draw(scene) for scene in scenes])
    # The first ten true pictures show every style once.
    references, wanted = judges.styles(true[:ROW]), np.arange(args.count) % ROW
    contents = np.array([CONTENTS.index(scene.content) for scene in scenes])
    found = {
        "content_accuracy": judges.contents(drawn).argmax(-1) == contents,
        "style_named": (judges.styles(drawn) @ references.T).argmax(-1) == wanted,
        "content_ceiling": judges.contents(true).argmax(-1) == contents,
        "style_ceiling": (judges.styles(true) @ references.T).argmax(-1) == wanted,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    figures = {name: float(value.mean()) for name, value in found.items()}
    intervals = {name: mean_interval(value.astype(np.float64)) for name, value in found.items()}
    per_style = {
        STYLES[i].family: float(found["style_named"][wanted == i].mean()) for i in range(ROW)
    }
    notes = {"manifest_sha256": manifest_hash(args.base), "count": args.count}
    content = {**figures, "intervals": intervals, "style_named_by_family": per_style, **notes}
    write_json(args.out / "style_words.json", content)
    rows = [np.concatenate([true[i : i + 1], drawn[i::ROW][:ROW]]) for i in range(ROW)]
    sheet = contact_sheet(rows, len(rows[0])).repeat(2, axis=0).repeat(2, axis=1)
    write_frames(sheet[None], args.out / "style_words.png", fps=1)
    print(figures, args.out / "style_words.json", args.out / "style_words.png", sep="\n")


if __name__ == "__main__":
    main()
