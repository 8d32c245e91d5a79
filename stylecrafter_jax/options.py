"""How to generate: size, steps, sampler, guidance, seed; checked against a model."""

import dataclasses
import math
from typing import Any

from stylecrafter_jax.config import ModelConfig, SamplingConfig
from stylecrafter_jax.diffusion.guidance import Guidance
from stylecrafter_jax.diffusion.samplers import SAMPLERS

# JAX uses 32 bits of a seed without saying so: larger ones would repeat smaller ones' results.
LAST_SEED = 2**32 - 1
# A third of the released order's operations; what it costs: docs/performance.md.
FAST = {"sampler": "dpmsolver++", "steps": 25, "cache_interval": 2, "cache_blocks": 2}
# Of samplers that need fewer than DDIM: with 25 they are half as far from many steps of their own
# as DDIM is with 50, under three-way guidance (docs/performance.md).
FEWER_STEPS = {"dpmsolver++": 25, "unipc": 25}


def usual_guidance(config: SamplingConfig, *, image: bool) -> Guidance:
    """Returns a model's own guidance for pictures or for videos."""
    if image:
        return Guidance(text=config.image_text_guidance, style=config.image_style_guidance)
    return Guidance(text=config.text_guidance, style=config.style_guidance)


def most_cache_blocks(config: ModelConfig) -> int:
    """Returns how many output blocks may run on a kept inner part: all but the innermost."""
    return len(config.unet.channel_mult) * (config.unet.num_res_blocks + 1) - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How to generate; `None` takes the model's own value.

    Attributes:
        image: make a picture (one frame, temporal layers off) instead of a video.
        height: pixels, a multiple of the model's `size_multiple`; so is `width`.
        frames: length of the video, at most what the model was trained with.
        fps: frames per second the video is played at.
        condition_fps: frames per second that the model is told, if it has `fps_cond`.
        steps: sampling steps; None is `FEWER_STEPS` for a sampler that has them there and is not
            the model's own.
        sampler: one of `SAMPLERS`.
        eta: share of fresh noise, for samplers that take one; None is 1 for DDIM, as in the
            released scripts, and the sampler's own for others.
        karras: Karras spacing of the noise levels.
        guidance: None is the model's own for video or picture.
        style_weight: factor on the style branch.
        negative_prompt: text of the unconditional branch.
        seed: with a request's index the only source of randomness.
        strength: with a video to start from, the share of the noise levels to run.
        fast: where `sampler`, `steps`, `cache_interval` or `cache_blocks` is None, `FAST` instead
            of the model's own.
        cache_interval: None is 1. Run the whole UNet at every so many steps only; between them its
            inner part is taken from the last time (DeepCache); 1 is always.
        cache_blocks: None is 1. How many of the outermost blocks run even then, on either side.
        decode_chunk: frames decoded at a time.
        decode_tile: side of a tile in latents for large frames; None decodes whole frames.
    """

    image: bool = False
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    fps: int | None = None
    condition_fps: int | None = None
    steps: int | None = None
    sampler: str | None = None
    eta: float | None = None
    karras: bool = False
    guidance: Guidance | None = None
    style_weight: float = 1.0
    negative_prompt: str = ""
    seed: int = 123
    strength: float = 1.0
    fast: bool = False
    cache_interval: int | None = None
    cache_blocks: int | None = None
    decode_chunk: int = 4
    decode_tile: int | None = None

    def resolved(self, config: ModelConfig) -> "Resolved":
        """Returns the options with the model's own values filled in, checked against the model.

        Raises:
            ValueError: a size, length, sampler or number is not possible; names it.
        """
        size = config.size
        own: dict[str, Any] = {"sampler": config.sampling.sampler, "steps": config.sampling.steps}
        own |= {"cache_interval": 1, "cache_blocks": 1} | (FAST if self.fast else {})
        own["cache_blocks"] = min(own["cache_blocks"], most_cache_blocks(config))
        sampler = own["sampler"] if self.sampler is None else self.sampler
        if sampler != own["sampler"]:
            own["steps"] = min(own["steps"], FEWER_STEPS.get(sampler, own["steps"]))
        usual = {
            "height": size.image_height if self.image else size.height,
            "width": size.image_width if self.image else size.width,
            "frames": 1 if self.image else size.frames,
            "fps": size.fps,
            "condition_fps": size.condition_fps if config.unet.fps_cond else None,
            **own,
            "guidance": usual_guidance(config.sampling, image=self.image),
            "eta": 1.0 if sampler == "ddim" else None,
        }
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        absent = {name: value for name, value in usual.items() if given[name] is None}
        chosen = Resolved(**given | absent)
        chosen.check(config)
        return chosen


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resolved(Options):
    """Options that are complete and fit a model; made by `Options.resolved` alone."""

    # A dataclass asks for defaults here since `Options` has some; 0 is never valid.
    height: int = 0
    width: int = 0
    frames: int = 0
    fps: int = 0
    steps: int = 0
    sampler: str = ""
    cache_interval: int = 1
    cache_blocks: int = 1
    guidance: Guidance = Guidance(text=0.0)

    def program_key(self) -> "Resolved":
        """Returns the options without what the sampling program takes as arguments or ignores."""
        return dataclasses.replace(
            self,
            fast=False,
            seed=0,
            negative_prompt="",
            style_weight=1.0,
            fps=1,
            condition_fps=None,
            cache_interval=min(2, self.cache_interval),
            decode_chunk=1,
            decode_tile=None,
        )

    def check(self, config: ModelConfig) -> None:
        """Raises ValueError naming the first option that the model cannot serve."""
        for ok, wanted, came in (*self._size_checks(config), *self._sampling_checks(config)):
            if not ok:
                raise ValueError(f"{wanted}, got {came}")

    def _size_checks(self, config: ModelConfig):
        """Yields (whether it is well, what was wanted, what came)."""
        multiple, length = config.size_multiple, config.unet.temporal_length
        for name, value in (("height", self.height), ("width", self.width)):
            wanted = f"{name} must be a positive multiple of {multiple}"
            yield value > 0 and value % multiple == 0, wanted, value
        yield not self.image or self.frames == 1, "a picture has 1 frame", self.frames
        wanted = f"frames must be between 1 and {length}, the model's temporal length"
        yield 1 <= self.frames <= length, wanted, self.frames
        yield self.fps > 0, "fps must be positive", self.fps
        told = config.unet.fps_cond or self.condition_fps is None
        yield told, "this model is not told a condition_fps", self.condition_fps
        positive = self.condition_fps is None or self.condition_fps > 0
        yield positive, "condition_fps must be positive", self.condition_fps
        yield self.decode_chunk >= 1, "decode_chunk must be at least 1", self.decode_chunk
        tile = self.decode_tile
        yield tile is None or tile >= 8, "decode_tile must be at least 8 latents", tile

    def _sampling_checks(self, config: ModelConfig):
        """Yields (whether it is well, what was wanted, what came)."""
        last = config.schedule.timesteps
        yield 1 <= self.steps <= last, f"steps must be between 1 and {last}", self.steps
        wanted = f"sampler must be one of {', '.join(SAMPLERS)}"
        yield self.sampler in SAMPLERS, wanted, repr(self.sampler)
        eta = self.eta or 0.0
        yield 0.0 <= eta <= 1.0, "eta must be between 0 and 1", eta
        noisy = ", ".join(name for name, sampler in SAMPLERS.items() if sampler.eta is not None)
        wanted = f"{self.sampler} adds no noise, so it takes no eta (these do: {noisy})"
        yield eta == 0.0 or SAMPLERS[self.sampler].eta is not None, wanted, eta
        interval, blocks = self.cache_interval, most_cache_blocks(config)
        yield interval >= 1, "cache_interval must be at least 1", interval
        fits = 1 <= self.cache_blocks <= blocks
        yield fits, f"cache_blocks must be between 1 and {blocks}", self.cache_blocks
        style = self.style_weight
        yield 0.0 <= style < math.inf, "style_weight must be at least 0 and finite", style
        yield 0.0 < self.strength <= 1.0, "strength must be in (0, 1]", self.strength
        yield 0 <= self.seed <= LAST_SEED, f"seed must be between 0 and {LAST_SEED}", self.seed
