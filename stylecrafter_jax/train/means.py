"""Metrics of parts of a batch: sums and counts inside a step, means over the steps between lines.

A batch is small and has parts that are seldom there, such as few noisy timesteps or rows that drop
their style. A step gives the sum and the count of each part; what is logged is the quotient of the
totals, and nothing where nothing was counted.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from stylecrafter_jax.config import ModelConfig
from stylecrafter_jax.models.unet_video import dual_attention_names

BUCKETS = 4  # of the schedule's timesteps, for the loss
LOSS_T, SCALE = "loss_t", "scale"


def by_timestep(
    errors: Float[Array, " b"], t: Int[Array, " b"], timesteps: int
) -> Float[Array, "buckets 2"]:
    """Returns sum and count of the rows' errors in each quarter of a schedule."""
    inside = (t * BUCKETS // timesteps)[None] == np.arange(BUCKETS)[:, None]
    sums = jnp.sum(jnp.where(inside, errors[None], 0.0), axis=1)
    return jnp.stack([sums, jnp.sum(inside, axis=1, dtype=jnp.float32)], axis=1)


def by_layer(
    scales: Float[Array, "b layers"], dropped: Bool[Array, " b"] | None
) -> Float[Array, "layers 2"]:
    """Returns sum and count of the factors of each layer, over the rows that keep their style."""
    rows = scales.shape[0]
    kept = jnp.ones(rows) if dropped is None else 1.0 - dropped.astype(jnp.float32)
    sums = jnp.sum(scales * kept[:, None], axis=0)
    return jnp.stack([sums, jnp.broadcast_to(jnp.sum(kept), sums.shape)], axis=1)


def labels(config: ModelConfig) -> dict[str, list[str]]:
    """Returns the names of the parts: ranges of timesteps, and dual cross-attentions."""
    timesteps = config.schedule.timesteps
    edges = [-(-i * timesteps // BUCKETS) for i in range(BUCKETS + 1)]
    names = [name.removesuffix("/attn2") for name in dual_attention_names(config.unet)]
    if config.unet.transformer_depth == 1:
        names = [name.removesuffix("/transformer_blocks.0") for name in names]
    return {
        LOSS_T: [f"{a}-{b - 1}" for a, b in zip(edges, edges[1:], strict=False)],
        # An adapter that attaches its tokens to the text's has no factors.
        SCALE: [n.replace("/", ".") for n in names] if config.adapter.fusion == "dual" else [],
    }


class Means:
    """Means of parts over the steps since the last line.

    They depend on the steps alone, however often a run is stopped between two lines, if its
    checkpoints carry `get_state`.

    Args:
        names: metric -> the names of its parts, see `labels`.
    """

    def __init__(self, names: Mapping[str, Sequence[str]]):
        self._names = names
        self._totals: dict[str, np.ndarray] = {}

    def add(self, metrics: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Takes a step's sums and counts into account; returns its other metrics, one number each.

        Of a step that is not finite only these are taken.
        """
        for name, value in metrics.items():
            if value.ndim and np.isfinite(value).all():
                self._totals[name] = self._totals.get(name, 0.0) + value.astype(np.float64)
        return {name: value.item() for name, value in metrics.items() if not value.ndim}

    def values(self) -> dict[str, float]:
        """Returns the means so far, such as `loss_t/0-249`."""
        return {
            f"{name}/{part}": float(total / count)
            for name, totals in self._totals.items()
            for part, (total, count) in zip(self._names[name], totals, strict=False)
            if count
        }

    def clear(self) -> None:
        """Begins anew, after a line that has all of them."""
        self._totals = {}

    def get_state(self) -> dict[str, Any]:
        """Returns the totals as plain JSON values."""
        return {name: totals.tolist() for name, totals in self._totals.items()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Takes over what `get_state` returned."""
        self._totals = {name: np.array(totals) for name, totals in state.items()}
