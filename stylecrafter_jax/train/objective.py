"""The losses of all stages: a batch of pixels or of precomputed features to one number."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from stylecrafter_jax.diffusion.losses import training_target
from stylecrafter_jax.diffusion.schedules import NoiseSchedule, add_noise, at_timesteps
from stylecrafter_jax.kernels.sharded import over_frames, split_pictures
from stylecrafter_jax.media.images import clip_pixels
from stylecrafter_jax.models.networks import Networks
from stylecrafter_jax.models.unet_video import Mode
from stylecrafter_jax.params import Params, select
from stylecrafter_jax.train.means import LOSS_T, SCALE, by_layer, by_timestep
from stylecrafter_jax.train.step import Batch, Loss, Metrics

ENCODED = ("mean", "logvar", "text", "image")
# Frozen values hold the text tokens of the empty prompt (1 l d) under this name, since no step
# changes them; like every name outside the parts, no network reads it.
EMPTY_TEXT = "empty_prompt/text"


class Features(NamedTuple):
    """What a batch comes to once the frozen encoders have seen it.

    Attributes:
        x0: scaled latents.
        text: text tokens.
        uncond: text tokens of the empty prompt, for rows that drop their text.
        image: image tokens of the references in a row; None trains without style.
    """

    x0: Float[Array, "b f y x z"]
    text: Float[Array, "t l d"]
    uncond: Float[Array, "1 l d"]
    image: Float[Array, "t n c"] | None


def encode(
    nets: Networks,
    params: Params,
    batch: Batch,
    keys: Key[Array, " b"],
    *,
    scale_factor: float,
    image_size: int,
) -> Features:
    """Returns the features of a batch; none of them passes a gradient.

    A batch holds what `encoded` takes, or what it returned, computed beforehand. What is drawn here
    does not depend on which of the two it is.

    Args:
        nets: the networks.
        params: all parameters, and `EMPTY_TEXT`.
        batch: see above.
        keys: of each row, for the autoencoder's posterior, which the original samples.
        scale_factor: between the autoencoder's latents and the UNet's.
        image_size: side of the image tower's input.

    Source: StyleCrafter, lvdm/models/ddpm3d.py, LatentDiffusion.get_first_stage_encoding.
    """
    seen = batch if "mean" in batch else encoded(nets, params, batch, image_size=image_size)
    # They may have been stored in half precision.
    seen = {name: seen[name].astype(jnp.float32) for name in ENCODED if name in seen}
    mean, logvar = seen["mean"], seen["logvar"]
    noise = normal(keys, mean.shape[1:])
    x0 = scale_factor * (mean + jnp.exp(0.5 * logvar) * noise)
    features = Features(x0, seen["text"], params[EMPTY_TEXT], seen.get("image"))
    return jax.lax.stop_gradient(features)


def encoded(nets: Networks, params: Params, batch: Batch, *, image_size: int) -> Batch:
    """Returns what the frozen encoders see in a batch, and which no random number decides.

    Args:
        nets: the networks.
        params: the parameters of autoencoder and CLIP towers.
        batch: `pixels` (uint8 b f h w 3), `ids` and perhaps `style` (uint8 b r s s 3).
        image_size: side of the image tower's input.

    Returns:
        `mean` and `logvar` of the unscaled latents (b f y x z), `text` tokens (b l d), and with a
        style `image`, the image tokens of all references in a row (b n c).
    """

    def latents(pixels, vae):
        # One frame at a time over the leading axis keeps the encoder's activations small.
        by_frame = jnp.swapaxes(pixels.astype(jnp.float32) / 127.5 - 1.0, 0, 1)
        found = jax.lax.map(lambda frame: nets.vae_encode(vae, frame), by_frame)
        return [jnp.swapaxes(x, 0, 1) for x in found]

    # Its attention has one head.
    mean, logvar = over_frames(latents, batch["pixels"], select(params, "^vae/"), heads=1)
    text = nets.encode_text(params, batch["ids"])
    features = {"mean": mean, "logvar": logvar, "text": text}
    if "style" in batch:
        features["image"] = _references(nets, params, batch, image_size)
    return features


def are_pictures(batch: Batch) -> bool:
    """Returns whether a batch, of pixels or of features, holds clips of one frame."""
    return _clips(batch).shape[1] == 1


def rows_of(batch: Batch) -> int:
    """Returns how many pictures or clips a batch holds, over all processes."""
    return _clips(batch).shape[0]


def _clips(batch: Batch) -> Array:
    return batch["pixels"] if "pixels" in batch else batch["mean"]


def _references(nets: Networks, params: Params, batch: Batch, size: int) -> Array:
    style = batch["style"]
    b, r = style.shape[:2]
    tokens = nets.encode_image(params, clip_pixels(style.reshape(b * r, *style.shape[2:]), size))
    return tokens.reshape(b, r * tokens.shape[1], tokens.shape[2])


def denoising(
    nets: Networks,
    schedule: NoiseSchedule,
    features: Callable[[Params, Batch, Key[Array, " b"]], Features],
    *,
    mode: Mode,
    min_snr_gamma: float | None = None,
    weight_floor: float = 0.0,
    noise_offset: float = 0.0,
    timestep_shift: float = 1.0,
) -> Loss:
    """Returns the loss of predicting eps, v or x0, with style where the batch has references.

    Rows flagged in `drop_text` get the empty prompt's text, rows flagged in `drop_style` a style
    scale of 0, which is the base model without adapter. Metrics, beside a number: `means.LOSS_T`
    and `means.SCALE`, sums and counts of the unweighted loss per quarter of the timesteps, and of
    the factors per dual cross-attention.

    Args:
        nets: the networks.
        schedule: the forward process.
        features: (parameters, batch, a key of each row) -> what `encode` returns.
        mode: how the UNet sees the frames.
        min_snr_gamma: weigh timesteps by min(snr, gamma) / snr (Hang et al. 2023, arXiv 2303.09556,
            for eps; the same weight of the x0 error for v and x0); None weighs all alike.
        weight_floor: no timestep weighs less. Minimum SNR alone all but forgets the noisiest ones,
            where a small model decides on layout and colours.
        noise_offset: standard deviation of noise that is constant over a frame.
        timestep_shift: see `draw_timesteps`.

    Source: StyleCrafter, lvdm/models/ddpm3d.py (q_sample, eps-prediction, l2).
    """

    def loss(params: Params, batch: Batch, keys: Key[Array, " b"]) -> tuple[Array, Metrics]:
        if are_pictures(batch):
            batch = split_pictures(batch)
        keys = jax.vmap(lambda key: jax.random.split(key, 4), out_axes=1)(keys)
        seen = features(params, batch, keys[0])
        x0 = seen.x0
        t = draw_timesteps(keys[1], schedule.timesteps, timestep_shift)
        noise = normal(keys[2], x0.shape[1:])
        if noise_offset:
            noise = noise + noise_offset * normal(keys[3], (x0.shape[1], 1, 1, x0.shape[-1]))
        text = seen.text
        if "drop_text" in batch:
            text = jnp.where(batch["drop_text"][:, None, None], seen.uncond, text)
        metrics: Metrics = {}
        style = scale = None
        if seen.image is not None:
            style = nets.style_tokens(params, seen.image)
            scale = nets.style_scale(params, style, text)
            metrics[SCALE] = by_layer(scale, batch.get("drop_style"))
            if "drop_style" in batch:
                scale = jnp.where(batch["drop_style"][:, None], 0.0, scale)
        noisy = add_noise(schedule, x0, noise, t)
        pred = nets.unet(
            params,
            noisy,
            t.astype(jnp.float32),
            text,
            style,
            scale,
            fps=batch.get("fps"),
            mode=mode,
        )
        target = training_target(schedule, x0, noise, t)
        errors = jnp.mean(jnp.square(pred - target), axis=tuple(range(1, x0.ndim)))
        weight = snr_weight(schedule, t, min_snr_gamma, weight_floor)
        metrics[LOSS_T] = by_timestep(errors, t, schedule.timesteps)
        metrics["unweighted_loss"] = jnp.mean(errors)
        return jnp.mean(weight * errors), metrics

    return loss


def normal(keys: Key[Array, " b"], shape: tuple[int, ...]) -> Float[Array, "b ..."]:
    """Returns standard normal values, those of each row from its own key."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def draw_timesteps(keys: Key[Array, " b"], count: int, shift: float = 1.0) -> Int[Array, " b"]:
    """Returns a random timestep below `count` for each key: uniform, or shifted.

    The share u of the schedule becomes shift u / (1 + (shift - 1) u): above 1, more of the noisy
    timesteps, where layout and motion are decided, are drawn.

    Source: Esser et al. 2024, arXiv 2403.03206, eq. 23.
    """
    t = jax.vmap(lambda key: jax.random.randint(key, (), 0, count))(keys)
    if shift == 1.0:
        return t
    u = (np.arange(count) + 0.5) / count
    shifted = np.floor(count * shift * u / (1.0 + (shift - 1.0) * u))
    return jnp.asarray(shifted, jnp.int32)[t]


def snr_weight(
    schedule: NoiseSchedule, t: Int[Array, " b"], gamma: float | None, floor: float = 0.0
) -> Float[Array, " b"]:
    """Returns the weight of each row's squared error for min-SNR weighting; 1 without gamma.

    With snr = signal^2 / noise^2 the x0 error is weighted by min(snr, gamma), hence the eps error
    by min(snr, gamma) / snr and the v error by min(snr, gamma) / (snr + 1); no weight is less than
    `floor`.

    Source: Hang et al. 2023, arXiv 2303.09556, eq. 6 and sec. 3.4.
    """
    if gamma is None:
        return jnp.ones(t.shape)
    alpha_bar = schedule.alpha_bar
    snr = alpha_bar * schedule.signal_scale**2 / np.maximum(1.0 - alpha_bar, 1e-12)
    per_kind = {"x0": 1.0, "v": 1.0 / (snr + 1.0), "eps": 1.0 / np.maximum(snr, 1e-12)}
    table = np.maximum(np.minimum(snr, gamma) * per_kind[schedule.prediction], floor)
    return at_timesteps([table], t, 1)[0]
