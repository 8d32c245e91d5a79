"""CLIP towers in OpenCLIP's and in Hugging Face's state dicts.

Our names are those of Flax CLIP, which are those of Hugging Face's PyTorch CLIP. OpenCLIP stacks
query, key and value into `in_proj` and keeps its projections as raw matrices, input first.
"""

import re
from collections.abc import Callable, Iterable

from stylecrafter_jax.checkpoints.layout import Entry, dotted

OPENCLIP = (  # Hugging Face -> OpenCLIP; every row that matches applies
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_projection\.weight$", "text_projection"),
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^visual_projection\.weight$", "visual.proj"),
    (r"\.layer_norm(\d)\.", r".ln_\1."),
    (r"\.self_attn\.[qkv]_proj\.", ".attn.in_proj_"),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)
INPUT_FIRST = ("text_projection", "visual.proj")


def huggingface(name: str) -> Entry:
    """Returns the entry of our CLIP parameter in a Hugging Face state dict.

    Source: transformers, models/clip/modeling_clip.py, CLIPModel.
    """
    _, inner = name.split("/", 1)
    return Entry(dotted(inner) if "/" in inner else inner, name.endswith("/kernel"))


def openclip(name: str) -> Entry:
    """Returns the entry of our CLIP parameter in an OpenCLIP state dict.

    Source: open_clip, src/open_clip/model.py, CLIP; transformer.py, ResidualAttentionBlock.
    """
    original = huggingface(name).name
    third = re.search(r"\.self_attn\.([qkv])_proj\.", original)
    for pattern, replacement in OPENCLIP:
        original = re.sub(pattern, replacement, original)
    kernel = name.endswith("/kernel") and original not in INPUT_FIRST
    return Entry(original, kernel, "qkv".index(third[1]) if third else None)


def layout_of(names: Iterable[str]) -> Callable[[str], Entry]:
    """Returns the table, `huggingface` or `openclip`, that a state dict's names follow."""
    towers = ("text_model.", "vision_model.")
    return huggingface if any(name.startswith(towers) for name in names) else openclip
