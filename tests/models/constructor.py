"""The order in which the original's UNet builds its layers, told once more from its constructor.

Every residual block appends; a stack remembers the channels of every input block, and the output
blocks take them from its top.
"""

from typing import NamedTuple

from stylecrafter_jax.config import UNetConfig


class Layer(NamedTuple):
    """One layer: its state-dict name, kind, and channels in and out."""

    name: str
    kind: str
    before: int
    after: int


def layers(config: UNetConfig) -> list[list[Layer]]:
    """Returns the layers of the input blocks, the middle block and the output blocks, in order."""
    width, levels = config.model_channels, list(enumerate(config.channel_mult))
    resize = ("res_down", "res_up") if config.resblock_updown else ("down", "up")
    blocks = [[Layer("input_blocks.0.0", "conv", config.in_channels, width)]]
    state = {"channels": width, "downsampling": 1}
    skips = [width]

    def transformers():
        kinds = ["spatial"] + ["temporal"] * config.temporal_attention
        return [(kind, state["channels"], state["channels"]) for kind in kinds]

    def residual(after, skip=0):
        found = [("res", state["channels"] + skip, after)]
        state["channels"] = after
        if state["downsampling"] in config.attention_resolutions:
            found += transformers()
        return found

    def add(name, found):
        blocks.append([Layer(f"{name}.{i}", *row) for i, row in enumerate(found)])

    for level, mult in levels:
        for _ in range(config.num_res_blocks):
            add(f"input_blocks.{len(blocks)}", residual(mult * width))
            skips.append(state["channels"])
        if level + 1 < len(levels):
            add(f"input_blocks.{len(blocks)}", [(resize[0], state["channels"], state["channels"])])
            skips.append(state["channels"])
            state["downsampling"] *= 2
    plain = [("res", state["channels"], state["channels"])]
    add("middle_block", plain + transformers() + plain)
    before_output = len(blocks)
    for level, mult in reversed(levels):
        for i in range(config.num_res_blocks + 1):
            found = residual(mult * width, skips.pop())
            if level > 0 and i == config.num_res_blocks:
                found.append((resize[1], state["channels"], state["channels"]))
                state["downsampling"] //= 2
            add(f"output_blocks.{len(blocks) - before_output}", found)
    return blocks
