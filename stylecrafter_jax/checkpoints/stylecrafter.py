"""The released StyleCrafter's files: which holds what, under which name, and what is left out.

The names are those of the original's whole inference model. `model.ckpt` carries them as they are,
the other files without the prefix of `FILES`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple

from stylecrafter_jax.checkpoints import clip
from stylecrafter_jax.checkpoints.bundle import part_of
from stylecrafter_jax.checkpoints.layout import Entry, dotted
from stylecrafter_jax.params import TEMPORAL

Kind = Literal["model", "temporal", "adapter", "open_clip"]
Part = Literal["unet", "adapter", "vae", "text_encoder", "image_encoder"]
UNET = "model.diffusion_model."
TEXT = "cond_stage_model.model."
IMAGE = "style_stage_model.model."


class File(NamedTuple):
    """One of the original's files.

    Attributes:
        name: what the release calls it.
        prefix: what its names lack to be those of the whole model.
        mark: matches names that every file of this kind has, prefix included.
        parts: our parts that it holds, wholly or in part.
    """

    name: str
    prefix: str
    mark: str
    parts: tuple[Part, ...]


FILES: dict[Kind, File] = {  # a later file's entries replace an earlier one's
    "model": File("model.ckpt", "", rf"^{UNET}input_blocks\.", ("unet", "vae", "text_encoder")),
    "temporal": File(
        "temporal_v1_1.pth", UNET, rf"^{UNET}(input_blocks\.\d+\.2|init_attn\.0)\.", ("unet",)
    ),
    "adapter": File("adapter_v1.pth", "adapter.", r"^adapter\.image_context_model\.", ("adapter",)),
    "open_clip": File(
        "open_clip_pytorch_model.bin",
        IMAGE,
        rf"^{IMAGE}(visual|vision_model)\.",
        ("text_encoder", "image_encoder"),
    ),
}


def _processor(match: re.Match[str]) -> str:
    return f"adapter.kv_attn_layers.{match[1].replace('.', '_')}_processor."


RENAMES = (  # our dotted name -> the whole model's; the first match wins
    (r"^unet\.(.+\.attn2)\.(?=to_[kv]_style|norm_style)", _processor),
    (r"^unet\.", UNET),
    (r"^vae\.", "first_stage_model."),
)
SCHEDULE_TABLES = (
    r"betas|(alphas|sqrt_alphas|sqrt_one_minus_alphas|log_one_minus_alphas)_cumprod"
    r"|alphas_cumprod_prev|sqrt_recip(m1)?_alphas_cumprod|scale_arr"
    r"|posterior_(variance|log_variance_clipped|mean_coef[12])"
)
IGNORED = (  # names of the whole model that are not weights of ours, and why
    (rf"^({SCHEDULE_TABLES})$", "tables of the noise schedule, computed from the config"),
    (r"^(lvlb_weights|logvar)$", "weights of the training loss"),
    (r"^model_ema\.", "training's moving average, which the original does not sample with"),
    (r"^first_stage_model\.loss\.", "the autoencoder's training loss"),
    (r"\.attn_mask$", "the causal mask, which is computed"),
    (r"\.position_ids$", "positions 0, 1, 2, ..., which are computed"),
    (rf"^{re.escape(IMAGE)}(?!visual|vision)", "a second text tower beside model.ckpt's"),
)
Towers = Mapping[str, tuple[str, Callable[[str], Entry]]]
RELEASED: Towers = {"text_encoder": (TEXT, clip.openclip), "image_encoder": (IMAGE, clip.openclip)}


def entry(name: str, towers: Towers = RELEASED) -> Entry:
    """Returns where our parameter `name` lies in the original's whole model.

    Args:
        name: our name.
        towers: prefix and table of each CLIP tower.
    """
    part = name.split("/")[0]
    if part in towers:
        prefix, table = towers[part]
        inner = table(name)
        return inner._replace(name=prefix + inner.name)
    original = dotted(name)
    for pattern, replacement in RENAMES:
        original, hits = re.subn(pattern, replacement, original)
        if hits:
            break
    return Entry(original, name.endswith("/kernel"))


def towers_of(names: Iterable[str]) -> Towers:
    """Returns where the CLIP towers lie among these names of a whole model.

    The text tower is model.ckpt's own, and OpenCLIP's where model.ckpt has none.
    """
    names = list(names)

    def tower(prefix):
        inner = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        return prefix, clip.layout_of(inner)

    has_text = any(name.startswith(TEXT) for name in names)
    return {"text_encoder": tower(TEXT if has_text else IMAGE), "image_encoder": tower(IMAGE)}


def ignored(name: str) -> str | None:
    """Returns why this name of the whole model holds no parameter of ours, None if it may."""
    return next((reason for pattern, reason in IGNORED if re.search(pattern, name)), None)


def owned_by(kind: Kind, name: str) -> bool:
    """Returns whether the original's file of this kind holds our parameter `name`."""
    if kind == "temporal":
        return re.search(TEMPORAL, name) is not None
    return part_of(name) in FILES[kind].parts


def entries(kind: Kind, names: Iterable[str]) -> dict[str, Entry]:
    """Returns where those of our parameters that a released file holds lie in it."""
    prefix = FILES[kind].prefix
    towers = RELEASED
    if kind == "open_clip":
        towers = {part: (prefix, clip.openclip) for part in RELEASED}
    table = {name: entry(name, towers) for name in names if owned_by(kind, name)}
    return {
        name: whole._replace(name=whole.name.removeprefix(prefix)) for name, whole in table.items()
    }


def kind_of(names: Iterable[str]) -> Kind | None:
    """Returns which of the original's files has these names (as in the file), None if none."""
    names = list(names)
    for kind, file in FILES.items():
        if any(re.search(file.mark, file.prefix + name) for name in names):
            return kind
    return None
