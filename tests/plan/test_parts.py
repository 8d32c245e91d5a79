import pytest

from stylecrafter_jax.config import ModelConfig
from stylecrafter_jax.options import Options
from stylecrafter_jax.plan.count import by_scope, count
from stylecrafter_jax.plan.parts import part_label
from stylecrafter_jax.plan.tasks import generation

RUN = "jit(step)/UNetVideo/UNetVideo.run_layer/"
CASES = {
    f"{RUN}input_blocks.1.0/in_layers.2/conv_general_dilated": "convolutions",
    f"{RUN}input_blocks.1.0/in_layers.0.parts/in_layers.0.normalised/mul": "norms",
    f"{RUN}input_blocks.1.1/norm/norm.parts/norm.normalised/mul": "norms",
    f"{RUN}input_blocks.1.1/transformer_blocks.0/norm2/mul": "norms",
    f"{RUN}input_blocks.1.1/transformer_blocks.0/attn1/to_q/dot": "spatial self-attention",
    f"{RUN}input_blocks.1.1/transformer_blocks.0/attn2/norm_style/mul": "dual cross-attention",
    f"{RUN}input_blocks.1.2/transformer_blocks.0/attn1/to_q/dot": "temporal attention",
    f"{RUN}init_attn.0/transformer_blocks.0/attn2/to_q/dot": "temporal attention",
    f"{RUN}middle_block.1/transformer_blocks.0/ff/net.2/dot": "feed-forward",
    f"{RUN}middle_block.2/proj_in/dot": "transformers' in and out",
    f"{RUN}output_blocks.2.1/conv/conv_general_dilated": "convolutions",
    "jit(step)/UNetVideo/out.0/out.0.parts/mul": "norms",
    "jit(step)/FlaxCLIPTextTransformer/encoder/layers/0/self_attn/dot": "CLIP towers",
    "jit(step)/Encode/encoder/down.0.block.0/norm1/mul": "autoencoder",
    "jit(step)/ScaleEncoder/layers.0/dot": "style tokens and scales",
    "jit(step)/adam/mul": "the rest",
}


@pytest.mark.parametrize("path", CASES)
def test_an_operation_is_for_what_its_module_does(path):
    assert part_label(ModelConfig().unet)(path) == CASES[path]


def test_every_product_of_a_step_is_for_something_that_is_known(tiny_config):
    task = generation(tiny_config, Options(steps=2).resolved(tiny_config))
    jaxpr = next(p for p in task.programs if p.name == "step").traced().jaxpr.jaxpr
    works = {name: work.flops for name, work in by_scope(jaxpr, task.label).items() if work.flops}
    assert sum(works.values()) == pytest.approx(count(jaxpr).flops)
    # Norms multiply no matrices; K and V of text and style were made before.
    assert works.keys() == {
        "convolutions",
        "dual cross-attention",
        "feed-forward",
        "spatial self-attention",
        "temporal attention",
        "transformers' in and out",
    }
