"""Attention of a sequence to itself or to another, by the best maintained implementation.

`xla` leaves it to XLA, in groups of rows where all logits at once would be too many; `splash` is
JAX's flash attention for TPU, `cudnn` cuDNN's for NVIDIA GPUs. None takes them for long sequences.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask
from jaxtyping import Array, Bool, Float

from stylecrafter_jax.kernels import cache
from stylecrafter_jax.kernels.dispatch import multiplied, target
from stylecrafter_jax.kernels.sharded import over_rows, split_videos, uneven

SelfImplementation = Literal["xla", "splash", "cudnn"]
# Logits of more bytes than this are not held at once: rows of the batch are attended in groups.
LOGITS_BYTES = 512 * 2**20
# From here on a flash attention moves fewer bytes: of 48 rows of 640 tokens and 10 heads, compiled
# for v5e, 0.6 GB instead of 2.2 GB. At 160 tokens there is nothing to win.
LONG = 512
PLATFORMS = {"splash": "tpu", "cudnn": "gpu"}
BLOCKS = (512, 640, 384, 256, 128)  # tokens; splash wants one that divides the sequence


def attention(
    q: Float[Array, "b n m e"],
    k: Float[Array, "b l m e"],
    v: Float[Array, "b l m e"],
    mask: Bool[Array, "#b n l"] | None = None,
    *,
    impl: SelfImplementation | None = None,
    queries: bool = False,
) -> Float[Array, "b n m e"]:
    """Returns softmax(q k^T / sqrt(e)) v for every head; logits and softmax are float32.

    Args:
        q: queries.
        k: keys.
        v: values.
        mask: True where attended.
        impl: None takes the fastest that covers the arguments where the program will run.
        queries: `q` holds those of all frames, one frame after the other, which several devices may
            split; otherwise frames are among the rows.

    Raises:
        NotImplementedError: `impl` does not cover the arguments.
    """
    long = min(q.shape[1], k.shape[1]) >= LONG
    cut = uneven(q.shape[0], q.shape[1] if queries else None)
    own = q.shape[1] if cut or not queries else q.shape[1] // split_videos()
    covering = [name for name in RUN if not _missing(name, q, k, mask, cut, own)]
    taken: str = impl or (covering[-1] if long else "xla")
    missing = _missing(taken, q, k, mask, cut, own)
    if missing:
        raise NotImplementedError(f"{taken} attention does not cover {missing}")
    if mask is not None or cut:
        return RUN[taken](q, k, v, mask)
    return over_rows(
        lambda q, k, v: RUN[taken](q, k, v, None), (q, k, v), queries=queries, heads=q.shape[2]
    )


def _missing(
    impl: str, q: Array, k: Array, mask: Array | None, cut: str | None, queries: int
) -> str | None:
    """Returns what an implementation does not cover."""
    if impl == "xla":
        return None
    if target() != PLATFORMS[impl]:
        return f"the platform {target()}"
    if mask is not None:
        return "a mask"
    if cut:
        return cut
    lengths = queries, k.shape[1]
    if impl == "splash" and not all(any(n % block == 0 for block in BLOCKS) for n in lengths):
        return f"{lengths[0]} queries and {lengths[1]} keys"
    if impl == "cudnn" and q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"{q.dtype}"
    return None


def _xla(q, k, v, mask) -> Array:
    b, n, m, _ = q.shape
    dtype = q.dtype
    q, k, v = (x.astype(multiplied(dtype)) for x in (q, k, v))
    if mask is not None:
        mask = mask[:, None]
    elif target() == "cpu" and 4 * b * m * n * k.shape[1] > cache.CACHE_BYTES:
        return _in_cache(q, k, v).astype(dtype)
    row_bytes = 4 * m * n * k.shape[1]
    if b > 1 and mask is None and b * row_bytes > LOGITS_BYTES:
        rows = max(1, LOGITS_BYTES // row_bytes)
        out = jax.lax.map(
            lambda row: jax.nn.dot_product_attention(*row), (q, k, v), batch_size=rows
        )
    else:
        out = jax.nn.dot_product_attention(q, k, v, mask=mask)
    return out.astype(dtype)


def _in_cache(q: Array, k: Array, v: Array) -> Array:
    """Returns attention a few logits at a time: rows, or queries of a head, that fit into a cache.

    Of 2,560 tokens and 5 heads it takes a quarter of the time of all logits at once, on 2 cores.
    """
    (b, n, m, e), keys = q.shape, k.shape[1]
    q, k, v = (rearrange(x, "b n m e -> b m n e") for x in (q, k, v))
    if 4 * m * n * keys > cache.CACHE_BYTES:  # a head at a time
        q, k, v = (rearrange(x, "b m n e -> (b m) 1 n e") for x in (q, k, v))
    parts = cache.parts(n, 4 * q.shape[1] * keys)

    def group(queries, keys, values):
        turned = rearrange(keys, "m l e -> m e l")

        def attend(some):
            logits = (some * e**-0.5) @ turned
            weights = jnp.exp(logits - logits.max(-1, keepdims=True))
            return weights @ values / weights.sum(-1, keepdims=True)

        if parts == 1:
            return attend(queries)
        blocks = rearrange(queries, "m (p n) e -> p m n e", p=parts)
        return rearrange(cache.in_turn(attend, blocks), "p m n e -> m (p n) e")

    out = cache.in_turn(group, q, k, v)
    return rearrange(out.reshape(b, m, n, e), "b m n e -> b n m e")


def _splash(q, k, v, _) -> Any:
    (queries, heads), keys = q.shape[1:3], k.shape[1]
    ours, theirs = (next(b for b in BLOCKS if n % b == 0) for n in (queries, keys))
    blocks = splash.BlockSizes(
        block_q=ours,
        block_kv=theirs,
        block_kv_compute=theirs,
        block_q_dkv=ours,
        block_kv_dkv=theirs,
        block_kv_dkv_compute=theirs,
        block_q_dq=ours,
        block_kv_dq=theirs,
    )
    everything = splash_attention_mask.FullMask((queries, keys))
    kernel = splash.make_splash_mha(
        splash_attention_mask.MultiHeadMask([everything] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=blocks,
    )
    q = q * q.shape[-1] ** -0.5
    q, k, v = (rearrange(x, "b n m e -> b m n e") for x in (q, k, v))
    return rearrange(jax.vmap(kernel)(q, k, v), "b m n e -> b n m e")


def _cudnn(q, k, v, _) -> Array:
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")


RUN: dict[str, Callable[..., Array]] = {
    "xla": _xla,
    "splash": _splash,
    "cudnn": _cudnn,
}
