"""A tiny model trained on the spot, so that an offline machine can see the whole path work.

It knows four shapes that move in four directions, 32x32 pixels, and takes its two colours and its
texture from the style image. A minute of training gives blobs in roughly the reference's colours,
no more: it shows that text, style, video and files work together, not what the method can do. The
CLIP towers stay random and frozen; the autoencoder is trained first, then UNet and adapter.
"""

import dataclasses
import functools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import UInt8
from tqdm import tqdm

from stylecrafter_jax import params as weights
from stylecrafter_jax.autoencode import encode_frames
from stylecrafter_jax.checkpoints.bundle import BundleWriter
from stylecrafter_jax.config import (
    AdapterConfig,
    AutoencoderConfig,
    CLIPConfig,
    ModelConfig,
    ScaleEncoderConfig,
    ScheduleConfig,
    SizeConfig,
    StyleTransformerConfig,
    TextTowerConfig,
    UNetConfig,
    VisionTowerConfig,
)
from stylecrafter_jax.diffusion.guidance import Guidance
from stylecrafter_jax.diffusion.losses import denoising_loss, training_target
from stylecrafter_jax.diffusion.schedules import add_noise, make_schedule
from stylecrafter_jax.generate import Request, StyleCrafter
from stylecrafter_jax.media.images import clip_pixels
from stylecrafter_jax.media.video import contact_sheet, write_frames
from stylecrafter_jax.models.networks import init_params, networks
from stylecrafter_jax.options import Options
from stylecrafter_jax.params import Params
from stylecrafter_jax.tokenizer import Tokenizer

SIDE, FRAMES, CLIPS, BATCH = 32, 8, 512, 8
SHAPES = ("circle", "square", "triangle", "cross")
MOTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
BAR = "{desc}: {percentage:3.0f}% |{bar:20}| {n:.0f}/{total:.0f} s{postfix}"
GUIDANCE = Guidance(text=2.0, style=2.0, convention="paper")

CONFIG = ModelConfig(
    unet=UNetConfig(
        model_channels=32,
        num_res_blocks=1,
        attention_resolutions=(1, 2),
        channel_mult=(1, 2),
        context_dim=64,
        num_head_channels=16,
        temporal_length=FRAMES,
        addition_attention=False,
    ),
    adapter=AdapterConfig(
        image_context=StyleTransformerConfig(in_dim=64, out_dim=64, num_tokens=4, n_layers=1),
        scale_predictor=ScaleEncoderConfig(in_dim=64, num_tokens=7, n_layers=1),
    ),
    vae=AutoencoderConfig(ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, scale_factor=1.0),
    clip=CLIPConfig(
        embed_dim=64,
        text=TextTowerConfig(width=64, heads=4, layers=2),
        vision=VisionTowerConfig(width=64, head_width=16, patch_size=32, layers=1),
    ),
    schedule=ScheduleConfig(prediction="v"),
    size=SizeConfig(height=SIDE, width=SIDE, image_height=SIDE, image_width=SIDE, frames=FRAMES),
)


class World:
    """Clips of one moving shape in two colours, and references of the same look."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)

    def style(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Returns two clearly different colours in [0, 1] and the period of stripes (0: none)."""
        while True:
            back, front = self.rng.uniform(0, 1, (2, 3))
            if np.abs(back - front).sum() > 1.2:
                return back, front, int(self.rng.choice([0, 4, 8]))

    def clip(self, shape: str, motion: str, style) -> UInt8[np.ndarray, "f h w 3"]:
        """Returns a clip of a shape that crosses the middle at half time."""
        dy, dx = MOTIONS[motion]
        offset = self.rng.integers(-3, 4)
        frames = []
        for f in range(FRAMES):
            path = 2.0 * (f - (FRAMES - 1) / 2)
            frames.append(draw(shape, dy * path + offset * dx, dx * path + offset * dy, style))
        return np.stack(frames)

    def sample(self) -> tuple[str, np.ndarray, np.ndarray]:
        """Returns a caption, its clip, and a reference: another shape of the same style."""
        style = self.style()
        shape = str(self.rng.choice(SHAPES))
        motion = str(self.rng.choice(list(MOTIONS)))
        other = str(self.rng.choice([s for s in SHAPES if s != shape]))
        return caption(shape, motion), self.clip(shape, motion, style), self.reference(other, style)

    def reference(self, shape: str, style) -> UInt8[np.ndarray, "h w 3"]:
        y, x = self.rng.integers(-5, 6, 2)
        return draw(shape, y, x, style)


def caption(shape: str, motion: str) -> str:
    """Returns the text of a clip."""
    return f"a {shape} moving {motion}"


def draw(shape: str, y: float, x: float, style) -> UInt8[np.ndarray, "h w 3"]:
    """Returns one picture; `y` and `x` are the shape's offset from the centre in pixels."""
    back, front, period = style
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5 - SIDE / 2
    v, u = rows - y, columns - x
    size = 7.0
    inside = {
        "circle": np.hypot(u, v) < size,
        "square": np.maximum(np.abs(u), np.abs(v)) < size * 0.85,
        "triangle": (v < size * 0.8) & (np.abs(u) < (v + size) * 0.6),
        "cross": (np.minimum(np.abs(u), np.abs(v)) < 2.5) & (np.maximum(abs(u), abs(v)) < size),
    }[shape]
    picture = np.where(inside[..., None], front, back)
    if period:
        stripes = ((rows + columns) // (period / 2)).astype(int) % 2 == 0
        picture = np.where(stripes[..., None], picture, picture * 0.75)
    return (picture * 255).astype(np.uint8)


def run(out: Path, *, bundle: Path, seconds: float, seed: int) -> int:
    """Trains, writes the bundle, generates a video and a contact sheet; returns 0."""
    print(
        f"No trained model ships with this version yet. Training a tiny one for {seconds:.0f} s "
        "(plus compiling): it will make blobs in roughly the reference's colours, nothing better."
    )
    config, params = train(seconds, seed)
    with BundleWriter(bundle, config, overwrite=True) as writer:
        for name, value in params.items():
            writer.add(name, np.asarray(value))
    print(f"wrote the model {bundle}")
    show(StyleCrafter.load(bundle), out, seed)
    return 0


def show(model: StyleCrafter, out: Path, seed: int) -> None:
    """Writes demo.mp4 and a sheet: a row for each prompt, its reference in the first column."""
    world = World(seed + 1)
    prompts = [caption(shape, motion) for shape, motion in zip(SHAPES, MOTIONS, strict=True)]
    references = [world.reference(SHAPES[i - 1], world.style()) for i in range(len(prompts))]
    requests = [
        Request(prompt, (reference,), None, i)
        for i, (prompt, reference) in enumerate(zip(prompts, references, strict=True))
    ]
    options = Options(steps=25, sampler="dpmsolver++", guidance=GUIDANCE, seed=seed)
    clips = model.generate(requests, options)
    out.mkdir(parents=True, exist_ok=True)
    video = np.concatenate(list(clips), axis=2)
    write_frames(_enlarged(video, 4), out / "demo.mp4", fps=model.config.size.fps)
    rows = [np.concatenate([r[None], clip]) for r, clip in zip(references, clips, strict=True)]
    sheet = contact_sheet(rows, FRAMES + 1)[None]
    write_frames(_enlarged(sheet, 3), out / "demo_sheet.png", fps=1)
    print("rows, from the top: " + "; ".join(prompts))
    print(f"wrote {out / 'demo.mp4'} and {out / 'demo_sheet.png'} (references in column one)")


def _enlarged(frames: np.ndarray, factor: int) -> np.ndarray:
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def train(seconds: float, seed: int) -> tuple[ModelConfig, Params]:
    """Returns a model trained for about `seconds`; compiling comes on top."""
    params = jax.jit(functools.partial(init_params, CONFIG))(jax.random.key(seed))
    world = World(seed)
    captions, clips, references = zip(*(world.sample() for _ in range(CLIPS)), strict=True)
    pixels = np.stack(clips).astype(np.float32) / 127.5 - 1.0
    params = _train_autoencoder(params, pixels, 0.3 * seconds, seed)
    nets = networks(CONFIG)
    encode = jax.jit(functools.partial(nets.vae_encode, params))
    latents = encode_frames(encode, pixels, scale_factor=1.0, chunk=128)
    # The noise schedule expects unit variance.
    vae = dataclasses.replace(CONFIG.vae, scale_factor=float(1.0 / latents.std()))
    features = {
        "x0": latents * vae.scale_factor,
        "text": _by_rows(
            functools.partial(nets.encode_text, params), Tokenizer.load()(list(captions))
        ),
        "image": _by_rows(
            lambda images: nets.encode_image(params, clip_pixels(images)), np.stack(references)
        ),
    }
    params = _train_denoiser(params, features, 0.7 * seconds, seed)
    return dataclasses.replace(CONFIG, vae=vae), params


def _by_rows(function, rows: np.ndarray, chunk: int = 64) -> np.ndarray:
    function = jax.jit(function)
    parts = [function(jnp.asarray(rows[i : i + chunk])) for i in range(0, len(rows), chunk)]
    return np.concatenate(parts)


def _train_autoencoder(params: Params, pixels: np.ndarray, seconds: float, seed: int) -> Params:
    """Trains the autoencoder on single frames: squared error and a little KL divergence."""
    nets = networks(CONFIG)
    frames = pixels.reshape(-1, *pixels.shape[2:])

    def loss(trainable, batch, key):
        mean, logvar = nets.vae_encode(trainable, batch["pixels"])
        z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
        kl = jnp.mean(jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)
        return jnp.mean(jnp.square(nets.vae_decode(trainable, z) - batch["pixels"])) + 1e-4 * kl

    batches = {"pixels": frames}
    return _fit("autoencoder", loss, params, r"^vae/", batches, 16, seconds, seed)


def _train_denoiser(
    params: Params, features: dict[str, np.ndarray], seconds: float, seed: int
) -> Params:
    """Trains UNet and adapter together; a fifth of the clips each loses its text or its style."""
    nets, schedule = networks(CONFIG), make_schedule(CONFIG.schedule)
    empty = nets.encode_text(params, jnp.asarray(Tokenizer.load()([""])))

    def loss(trainable, batch, key):
        keys = jax.random.split(key, 4)
        x0, rows = batch["x0"], batch["x0"].shape[0]
        t = jax.random.randint(keys[0], (rows,), 0, schedule.timesteps)
        noise = jax.random.normal(keys[1], x0.shape)
        no_text = jax.random.bernoulli(keys[2], 0.2, (rows, 1, 1))
        text = jnp.where(no_text, jnp.broadcast_to(empty, batch["text"].shape), batch["text"])
        style = nets.style_tokens(trainable, batch["image"])
        scale = nets.style_scale(trainable, style, text)
        scale = scale * jax.random.bernoulli(keys[3], 0.8, (rows, 1))
        noisy = add_noise(schedule, x0, noise, t)
        pred = nets.unet(trainable, noisy, t.astype(jnp.float32), text, style, scale)
        return denoising_loss(pred, training_target(schedule, x0, noise, t))

    return _fit("denoiser", loss, params, r"^unet/|^adapter/", features, BATCH, seconds, seed)


def _fit(
    name: str,
    loss,
    params: Params,
    pattern: str,
    batches: dict[str, np.ndarray],
    size: int,
    seconds: float,
    seed: int,
) -> Params:
    """Returns `params` after Adam steps on those that match `pattern`, for `seconds`."""
    trainable = weights.select(params, pattern)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1.5e-3))
    state = tx.init(trainable)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(trainable, state, batch, key):
        value, grads = jax.value_and_grad(loss)(trainable, batch, key)
        updates, state = tx.update(grads, state, trainable)
        return optax.apply_updates(trainable, updates), state, value

    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    count = len(next(iter(batches.values())))

    def batch():
        rows = rng.integers(0, count, size)
        return {field: jnp.asarray(values[rows]) for field, values in batches.items()}

    trainable, state, value = step(trainable, state, batch(), key)
    value.block_until_ready()
    began, done = time.perf_counter(), 1
    with tqdm(total=round(seconds), desc=name, unit="s", bar_format=BAR) as bar:
        while (elapsed := time.perf_counter() - began) < seconds:
            bar.update(round(elapsed) - bar.n)
            trainable, state, value = step(trainable, state, batch(), jax.random.fold_in(key, done))
            done += 1
            bar.set_postfix(step=done, loss=f"{float(value):.3f}", refresh=False)
    return {**params, **trainable}
