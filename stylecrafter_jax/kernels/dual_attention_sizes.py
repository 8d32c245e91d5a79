"""What the programs of a dual cross-attention must know beside their arrays."""

from typing import NamedTuple

from jaxtyping import Array

from stylecrafter_jax.kernels.tiles import columns, softmax


class Sizes(NamedTuple):
    """Sizes of a dual cross-attention.

    Attributes:
        heads: that the channels are split into.
        head_dim: channels of a head.
        text: text tokens, the first rows of keys and values.
        style: style tokens, the rows after them; padding follows.
        styled: how many leading rows of the batch have a style.
        queries: in a row of the batch; the last block of them may reach beyond.
        epsilon: of the LayerNorm.
        interpret: run the program in Python.
    """

    heads: int
    head_dim: int
    text: int
    style: int
    styled: int
    queries: int
    epsilon: float
    interpret: bool

    @property
    def scale(self) -> float:
        """Factor on the logits."""
        return self.head_dim**-0.5

    def over_text(self, logits: Array) -> Array:
        """Returns the softmax over the keys of the text."""
        return softmax(logits, columns(logits, 0, self.text))

    def over_style(self, logits: Array) -> Array:
        """Returns the softmax over the keys of the style."""
        return softmax(logits, columns(logits, self.text, self.text + self.style))
