"""The demo world as training data: endless scenes by number, and examples made of them."""

import dataclasses
import difflib
import zlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from stylecrafter_jax.data.records import DataError
from stylecrafter_jax.data.transforms import Drop, Pictures, drop_flags
from stylecrafter_jax.tokenizer import Tokenizer
from stylecrafter_jax.world.contents import CONTENTS, MODEL_SETS
from stylecrafter_jax.world.drawing import caption, draw
from stylecrafter_jax.world.scenes import FRAMES, PLACES, SIZE, Scene, sample_scene
from stylecrafter_jax.world.styles import (
    HELD_OUT_FAMILIES,
    TRAIN_FAMILIES,
    Style,
    sample_style,
)

WORLD = "world:"
COUNT = 1_000_000
FPS = 8.0
# Reference scenes of an item, of which a transform uses the first ones.
REFERENCES = 4
Split = Literal["train", "held_out"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """What the items of a source are.

    Attributes:
        styled: share of the items drawn in a style.
        style_words: whether their captions name it.
        clips: whether they are clips.
        same: whether the reference is the target itself.
    """

    styled: float = 0.0
    style_words: bool = False
    clips: bool = False
    same: bool = False


KINDS = {
    "ordinary": Kind(),
    "looks": Kind(styled=0.65, style_words=True),
    "styled": Kind(styled=1.0),
    # Style and content come together: the ablation of the paper's Table 4 without augmentation.
    "styled_same": Kind(styled=1.0, same=True),
    "clips": Kind(clips=True),
    "styled_clips": Kind(styled=1.0, clips=True),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldItem:
    """One example to be drawn.

    Attributes:
        scene: the target.
        references: pictures of other contents in other places, in the target's style; or the
            target, in a kind that has them the same.
        caption: the target in words.
    """

    scene: Scene
    references: tuple[Scene, ...]
    caption: str


class WorldSource:
    """Scenes by number: item i depends on nothing but kind, split, seed and i.

    Attributes:
        name: its specification, as `open_world` takes it.
        kind: what its items are.
    """

    def __init__(
        self,
        kind: str,
        count: int = COUNT,
        seed: int = 0,
        *,
        split: Split = "train",
        frames: int = FRAMES,
        drawings: Sequence[str] = MODEL_SETS,
    ):
        """Makes a source of `count` items.

        Args:
            kind: one of `KINDS`.
            count: at least 1.
            seed: at least 0.
            split: `train` has no held-out combination and no held-out family, `held_out` only such.
            frames: of a clip.
            drawings: sets that the contents are drawn from.

        Raises:
            DataError: there is no such kind, or a number is too small.
        """
        if kind not in KINDS:
            raise DataError(f"there is no kind of world {kind!r}{_hint(kind)}")
        if count < 1 or seed < 0:
            raise DataError(f"a world needs count >= 1 and seed >= 0, got {count} and {seed}")
        if frames < 2:
            raise DataError(f"clips of the world have at least 2 frames, got {frames}")
        self.kind = KINDS[kind]
        self.name = f"{WORLD}{kind}:{count}:{seed}" + (":held_out" if split != "train" else "")
        self._count, self._frames, self._drawings = count, frames, tuple(drawings)
        self._held = split == "held_out"
        self._entropy = (zlib.crc32(f"{kind} {split}".encode()), seed)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int, /) -> WorldItem:
        if not 0 <= index < self._count:
            raise IndexError(f"{self.name} has no item {index}")
        rng = np.random.default_rng([*self._entropy, index])
        style: Style | None = None
        if rng.random() < self.kind.styled:
            style = sample_style(rng, HELD_OUT_FAMILIES if self._held else TRAIN_FAMILIES)
        frames = self._frames if self.kind.clips else 1
        scene = sample_scene(
            rng, frames=frames, drawings=self._drawings, style=style, held=self._held
        )
        contents = [content for content in CONTENTS if content != scene.content]
        places = [place for place in PLACES if place != scene.place]
        references = tuple(
            scene
            if self.kind.same
            else sample_scene(
                rng, contents=contents, drawings=self._drawings, places=places, style=style
            )
            for _ in range(REFERENCES)
        )
        words = caption(scene, self.kind.style_words)
        return WorldItem(scene=scene, references=references, caption=words)

    def id(self, index: int, /) -> str:
        """Returns the source's name and the item's number."""
        return f"{self.name}#{index}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldTransform:
    """Draws the example of an item.

    Attributes:
        tokenizer: makes the token ids.
        drop: chances to drop conditions.
        references: style pictures per example; with 0 it has neither `style` nor `drop_style`.
        side: of a random square of the target, in pixels.
    """

    tokenizer: Tokenizer
    drop: Drop = Drop()
    references: int = 1
    side: int = SIZE

    def __post_init__(self):
        if not 0 <= self.references <= REFERENCES:
            raise DataError(
                f"an item of the world has up to {REFERENCES} references, got {self.references}"
            )
        if not 1 <= self.side <= SIZE:
            raise DataError(f"pictures of the world have up to {SIZE} pixels, got {self.side}")

    def __call__(self, item: WorldItem, rng: np.random.Generator) -> dict[str, Any]:
        """Returns what `data.transforms.Transform` returns, of 64x64 pixels or less."""
        drop_text, drop_style = drop_flags(self.drop, rng)
        pixels, style, fps, words = shown(item, self.references)
        if self.side < SIZE:
            top, left = rng.integers(0, SIZE - self.side + 1, 2)
            pixels = pixels[:, top : top + self.side, left : left + self.side]
        example = {
            "pixels": pixels,
            "ids": self.tokenizer([words])[0],
            "fps": np.float32(fps),
            "drop_text": np.bool_(drop_text),
        }
        if not self.references:
            return example
        return {**example, "style": style, "drop_style": np.bool_(drop_style)}


def shown(item: WorldItem, references: int = 1) -> Pictures:
    """Draws an item and its first references."""
    pixels = draw(item.scene)
    styles = [draw(scene) for scene in item.references[:references]]
    style = np.concatenate([np.empty((0, SIZE, SIZE, 3), np.uint8), *styles])
    return Pictures(pixels, style, FPS if len(pixels) > 1 else 0.0, item.caption)


def open_world(spec: str, *, frames: int = FRAMES) -> WorldSource:
    """Returns the source that `world:KIND[:COUNT[:SEED]]` means.

    Args:
        spec: see above.
        frames: of a clip.

    Raises:
        DataError: it means none.
    """
    kind, *numbers = spec.removeprefix(WORLD).split(":")
    if not spec.startswith(WORLD) or len(numbers) > 2:
        raise DataError(f"a world is {WORLD}KIND[:COUNT[:SEED]], got {spec!r}")
    try:
        values = [int(number) for number in numbers]
    except ValueError:
        raise DataError(f"COUNT and SEED of a world must be whole numbers, got {spec!r}") from None
    return WorldSource(kind, *values, frames=frames)


def _hint(kind: str) -> str:
    near = difflib.get_close_matches(kind, KINDS, 1, 0.4)
    return f"; did you mean {near[0]!r}?" if near else f", only {', '.join(KINDS)}"
