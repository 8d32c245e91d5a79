"""Prompt and style images in, frames out."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8
from PIL import Image

from stylecrafter_jax import params as weights
from stylecrafter_jax.autoencode import decode_frames, encode_frames
from stylecrafter_jax.checkpoints.bundle import load_bundle, part_of
from stylecrafter_jax.checkpoints.torch_files import CheckpointError
from stylecrafter_jax.config import ModelConfig
from stylecrafter_jax.denoiser import Condition
from stylecrafter_jax.diffusion.samplers import noise_to_start
from stylecrafter_jax.diffusion.schedules import make_schedule
from stylecrafter_jax.kernels.sharded import devices_of_rows
from stylecrafter_jax.media.images import clip_pixels, load_style_image
from stylecrafter_jax.media.video import to_uint8
from stylecrafter_jax.models.networks import Networks, networks, parameter_shapes
from stylecrafter_jax.options import Options, Resolved
from stylecrafter_jax.params import Params
from stylecrafter_jax.programs import Programs
from stylecrafter_jax.request import Request, StyleImage, check_requests, reference_weights
from stylecrafter_jax.sampling import (
    CARRY,
    decoder,
    first_noise,
    frames_at_a_time,
    latent_shape,
    make_sampling,
)
from stylecrafter_jax.sharding import on_mesh, on_one_device, put_weights
from stylecrafter_jax.tokenizer import Tokenizer

Progress = Callable[[int, int], None]


def default_dtype() -> np.dtype:
    """Returns the compute dtype of the default device."""
    return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)


class StyleCrafter:
    """A loaded model: call it with prompts and style images, get frames.

    Programs are compiled once for each shape and kept in the object. Calls of one object run one
    after another.

    Attributes:
        config: the model.
        tokenizer: text to ids.
        programs: the compiled programs; `programs.compile_seconds` is what they cost.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Params,
        tokenizer: Tokenizer,
        *,
        dtype: Any = None,
        param_dtype: Any = None,
        keep_encoders: bool = True,
        mesh: Mesh | None = None,
    ):
        """Takes the weights; each part goes to the default device when it is first used.

        Args:
            config: the model.
            params: all its parameters; of the adapter's there may be none.
            tokenizer: the text encoder's.
            dtype: compute dtype; None is bfloat16 on accelerators and float32 on CPU.
            param_dtype: dtype that UNet, adapter and autoencoder weights are held in; None keeps
                the bundle's.
            keep_encoders: keep both CLIP towers on the device between calls; otherwise they are
                moved there for each call and freed.
            mesh: devices to work together on every batch, see `sharding`; None is the default one.
                Several processes whose devices it has make all calls alike, and each gets all.
        """
        self.config = config
        self.tokenizer = tokenizer
        self.dtype = default_dtype() if dtype is None else jnp.dtype(dtype)
        self.networks: Networks = networks(config, self.dtype)
        self.schedule = make_schedule(config.schedule)
        self.programs = Programs()
        self.styled = any(name.startswith("adapter/") for name in params)
        self.mesh = mesh
        self._host = params
        self._keep_encoders = keep_encoders
        self._param_dtype = param_dtype
        self._device: dict[str, Params] = {}
        self._lock = threading.Lock()

    @classmethod
    def load(cls, bundle: str | Path, **settings: Any) -> "StyleCrafter":
        """Loads a bundle folder.

        Args:
            bundle: the folder.
            **settings: dtype, param_dtype, keep_encoders, mesh of the constructor.

        Raises:
            CheckpointError: the folder is no complete bundle; every wrong tensor is named.
        """
        config, params = load_bundle(bundle, expected=parameter_shapes)
        missing = sorted({"unet", "vae", "text_encoder"} - {part_of(name) for name in params})
        if missing:
            raise CheckpointError(f"{bundle} cannot generate: it has no {', '.join(missing)}")
        tokenizer = Tokenizer.in_bundle(bundle, config.clip.text.context_length)
        return cls(config, params, tokenizer, **settings)

    def __call__(
        self,
        prompt: str | Sequence[str],
        style: StyleImage | Sequence[StyleImage] | None = None,
        *,
        style_weights: Sequence[float] | None = None,
        start: UInt8[np.ndarray, "f h w 3"] | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> UInt8[np.ndarray, "b f h w 3"]:
        """Generates one video (or picture) for each prompt, all in the same style.

        Args:
            prompt: one text or several; the i-th one has the random index i.
            style: one reference (path, PIL image, array) or several; None is the plain model.
            style_weights: how much each reference counts; None is all the same.
            start: frames to start from, noised to `strength`.
            progress: see `generate`.
            **options: fields of `Options`.

        Raises:
            ValueError: an argument is not possible; the message names it.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        styles = _several(style)
        if style is not None and not styles:
            raise ValueError("style is an empty list; leave it out for the plain model")
        requests = [Request(text, styles, style_weights, i) for i, text in enumerate(prompts)]
        return self.generate(requests, Options(**options), start=start, progress=progress)

    def generate(
        self,
        requests: Sequence[Request],
        options: Options,
        *,
        start: UInt8[np.ndarray, "f h w 3"] | None = None,
        progress: Progress | None = None,
    ) -> UInt8[np.ndarray, "b f h w 3"]:
        """Generates a batch; a request's result depends on its own fields and the options only.

        Up to rounding, that is: programs of another batch size may add in another order.

        Args:
            requests: at least one, and all of them with style images or none.
            options: how to generate; all requests share them.
            start: frames that all requests start from, noised to `options.strength`.
            progress: called as `(steps done, steps)`, with 0 when everything is compiled; an
                exception in it ends sampling.

        Raises:
            ValueError: a request or an option is not possible, or a style image cannot be used.
        """
        options = options.resolved(self.config)
        check_requests(requests, styled=self.styled)
        if start is None and options.strength != 1.0:
            raise ValueError(f"strength {options.strength} needs frames to start from")
        with self._lock:
            with on_mesh(self.mesh):
                condition = self.encode(requests, options)
                latents = self.sample(condition, requests, options, start, progress=progress)
            return to_uint8(self.decode(latents, options))

    def encode(self, requests: Sequence[Request], options: Resolved) -> Condition:
        """Returns the encoded prompts and references of a batch."""
        texts = [request.prompt for request in requests]
        ids = jnp.asarray(self.tokenizer([*texts, options.negative_prompt]))
        with self._encoder("text_encoder") as encoder:
            text = self.programs.run("text", self.networks.encode_text, encoder, ids)
        text = self._apart(text)
        text, uncond = text[:-1], jnp.repeat(text[-1:], len(texts), axis=0)
        if not requests[0].styles:
            return Condition(text, uncond, None, None)
        tokens, token_weights = self._reference_tokens(requests)
        adapter = self._part("adapter")
        style = self.programs.run(
            "style", self.networks.style_tokens, adapter, tokens, token_weights
        )
        scale = self.programs.run(
            "scale",
            self.networks.style_scale,
            adapter,
            style,
            text,
            jnp.float32(options.style_weight),
        )
        return Condition(text, uncond, style, scale)

    def _reference_tokens(self, requests: Sequence[Request]) -> tuple[Array, Array | None]:
        """Returns the image tokens of each request's references in a row, and their weights.

        A request with fewer references than the longest is padded; padding counts nothing. An
        image that several references name is encoded once.
        """
        longest = max(len(request.styles) for request in requests)
        given = np.zeros((len(requests), longest), np.float32)
        rows = []
        tokens: dict[StyleImage | int, Array] = {}
        with self._encoder("image_encoder") as encoder:
            for row, request in enumerate(requests):
                given[row, : len(request.styles)] = reference_weights(request)
                keys = [s if isinstance(s, str | Path) else id(s) for s in request.styles]
                for key, style in zip(keys, request.styles, strict=True):
                    if key not in tokens:
                        tokens[key] = self._image_tokens(encoder, load_style_image(style))
                rows += [tokens[key] for key in keys + keys[:1] * (longest - len(keys))]
        count = rows[0].shape[1]
        joined = jnp.concatenate(rows).reshape(len(requests), longest * count, -1)
        if longest == 1 and np.all(given == 1.0):
            return joined, None
        return joined, jnp.asarray(np.repeat(given, count, axis=1))

    def _image_tokens(
        self, encoder: Params, image: UInt8[np.ndarray, "h w 3"]
    ) -> Float[Array, "1 n d"]:
        size = self.config.clip.vision.image_size

        def encode(params, image):
            return self.networks.encode_image(params, clip_pixels(image, size=size))

        return self._apart(self.programs.run("image", encode, encoder, jnp.asarray(image[None])))

    def _apart(self, x: Array) -> Array:
        """Returns an array that this process may take apart outside of a program."""
        return x if self.mesh is None else jnp.asarray(np.asarray(on_one_device(x)))

    def sample(
        self,
        condition: Condition,
        requests: Sequence[Request],
        options: Resolved,
        start: UInt8[np.ndarray, "f h w 3"] | None = None,
        *,
        progress: Progress | None = None,
    ) -> Float[Array, "b f y x z"]:
        """Returns the scaled latents of a batch."""
        unet, styled = self._part("unet"), condition.style is not None
        sampling = make_sampling(
            self.networks, self.schedule, options, styled=styled, from_noise=start is None
        )
        seed = jax.random.key(options.seed)
        keys = jnp.stack([jax.random.fold_in(seed, request.index) for request in requests])
        x = first_noise(keys, latent_shape(self.config, options))
        if start is not None:
            clean = self._start_latents(start, options)
            x = noise_to_start(sampling.plan, jnp.broadcast_to(clean, x.shape), x)
        fps = jnp.full((len(requests),), options.condition_fps or 0, jnp.float32)
        given = self.programs.run(
            ("prepare", options.guidance), sampling.prepare, unet, condition, sampling.steps, fps
        )
        args, last = (unet, given, keys), sampling.plan.steps
        which = (options.program_key(), start is None)
        # It traces the UNet to know what a step remembers: once, as a program.
        begin = ("begin", *which)
        carry = self.programs.run(begin, sampling.begin, unet, given, x, whole=False)
        key = ("sample", *which)
        limits = (np.int32(0), np.int32(last))
        program = self.programs.get(key, sampling.advance, *args, carry, *limits, donate=(CARRY,))
        if progress is None:
            carry = program(*args, carry, *limits)
            return jax.block_until_ready(carry[0].x)
        progress(0, last)
        # Not a callback out of one call: such programs cannot be cached on disk.
        for i in range(last):
            carry = program(*args, carry, np.int32(i), np.int32(i + 1))
            jax.block_until_ready(carry)
            progress(i + 1, last)
        return carry[0].x

    def decode(
        self, latents: Float[Array, "b f y x z"], options: Resolved
    ) -> Float[np.ndarray, "b f h w 3"]:
        """Returns the pixels of scaled latents, mostly in [-1, 1]."""
        vae = self._part("vae")
        with on_mesh(self.mesh):
            devices = devices_of_rows()
        frames = latents.shape[0] * latents.shape[1]
        decode = decoder(self.networks)

        def decode_rows(z):
            if self.mesh is None:
                return self.programs.run("decode", decode, vae, z)
            with on_mesh(self.mesh):
                pixels = self.programs.run("decode", decode, vae, np.asarray(z), whole=False)
            return on_one_device(pixels)

        return decode_frames(
            decode_rows,
            latents if self.mesh is None else on_one_device(latents),
            scale_factor=self.config.vae.scale_factor,
            factor=self.config.vae.downsampling,
            chunk=frames_at_a_time(frames, options.decode_chunk, devices),
            tile=options.decode_tile,
        )

    def _start_latents(
        self, start: UInt8[np.ndarray, "f h w 3"], options: Resolved
    ) -> Float[Array, "1 f y x z"]:
        wanted = (options.frames, options.height, options.width)
        if start.shape[:3] != wanted:
            raise ValueError(f"the start has frames, height, width {start.shape[:3]}, not {wanted}")
        vae = self._part("vae")

        def encode(x):
            mean, logvar = self.programs.run("vae_encode", self.networks.vae_encode, vae, x)
            return self._apart(mean), self._apart(logvar)

        latents = encode_frames(
            encode,
            (start[None].astype(np.float32) / 127.5) - 1.0,
            scale_factor=self.config.vae.scale_factor,
            chunk=options.decode_chunk,
        )
        return jnp.asarray(latents)

    def _part(self, name: str) -> Params:
        """Returns a part's parameters on the device, under their full names."""
        if name not in self._device:
            own = {k: v for k, v in self._host.items() if k.startswith(name + "/")}
            if self._keep_encoders or not name.endswith("_encoder"):
                # The device holds them from now on: let go of the memory-mapped file.
                self._host = {k: v for k, v in self._host.items() if k not in own}
            if self._param_dtype is not None and not name.endswith("_encoder"):
                own = weights.cast(own, self._param_dtype)
            there = jax.device_put(own) if self.mesh is None else put_weights(own, self.mesh)
            self._device[name] = jax.block_until_ready(there)
        return self._device[name]

    @contextlib.contextmanager
    def _encoder(self, name: str) -> Iterator[Params]:
        """Yields an encoder's parameters, and frees them afterwards unless they are kept."""
        try:
            yield self._part(name)
        finally:
            if not self._keep_encoders:
                self._device.pop(name, None)


def _several(style: StyleImage | Sequence[StyleImage] | None) -> tuple[StyleImage, ...]:
    if style is None:
        return ()
    if isinstance(style, str | Path | Image.Image | np.ndarray):
        return (style,)
    return tuple(style)
