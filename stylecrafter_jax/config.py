"""What a model is, as frozen dataclasses; `config_json` reads and writes them.

Field names of the networks are those of the original YAML files
(StyleCrafter, `configs/inference_video_320_512.yaml`), so that a config reads like the original.
A default stands here and nowhere else; the defaults are the released 320x512 video model.
"""

import dataclasses
from typing import Literal

Prediction = Literal["eps", "v", "x0"]
Fusion = Literal["dual", "attach"]


class ConfigError(ValueError):
    """A setting is unknown, has the wrong type, or contradicts another one."""


def require(ok: bool, message: str) -> None:
    """Raises ConfigError unless all is well."""
    if not ok:
        raise ConfigError(message)


def _divides(name: str, value: int, by: str, divisor: int) -> None:
    require(value % divisor == 0, f"{name} {value} is not a multiple of {by} {divisor}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """VideoCrafter's video UNet.

    Attributes:
        num_heads: heads of every spatial and temporal attention; ignored if `num_head_channels`
            is set.
        num_head_channels: width of a head, or -1 to derive it from `num_heads`.
        use_linear: project in and out of a transformer by a linear layer instead of a 1x1
            convolution; the arithmetic is the same, the weights' shapes differ.
        temporal_length: the number of frames the model was trained with; half the extent of the
            relative-position tables and the size of the causal mask.
        addition_attention: an extra temporal transformer (`init_attn`) after the first convolution.
        temporal_conv: temporal convolutions after every residual block.
        tempspatial_aware: their first two kernels are 3x3x3 instead of 3x1x1.
        fps_cond: frames per second are embedded and added to the time embedding.
        norm_groups: of every group norm, 32 in the original; a group of one channel would forget
            how bright the picture is, so narrow models have fewer.

    Source: StyleCrafter, lvdm/modules/networks/openaimodel3d.py, UNetModel.
    """

    in_channels: int = 4
    out_channels: int = 4
    model_channels: int = 320
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (4, 2, 1)
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    conv_resample: bool = True
    context_dim: int = 1024
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    num_heads: int = -1
    num_head_channels: int = 64
    transformer_depth: int = 1
    use_linear: bool = True
    temporal_conv: bool = False
    tempspatial_aware: bool = False
    temporal_attention: bool = True
    temporal_selfatt_only: bool = True
    use_relative_position: bool = True
    use_causal_attention: bool = False
    temporal_length: int = 16
    addition_attention: bool = True
    temporal_transformer_depth: int = 1
    fps_cond: bool = False
    norm_groups: int = 32

    def __post_init__(self):
        require(
            self.num_heads != -1 or self.num_head_channels != -1,
            "unet: one of num_heads and num_head_channels must be set, both are -1",
        )
        require(
            self.num_head_channels != -1 or not self.addition_attention,
            "unet: addition_attention needs num_head_channels, got -1",
        )
        for mult in self.channel_mult:
            _divides("unet channels", mult * self.model_channels, "norm_groups", self.norm_groups)

    def heads(self, channels: int) -> tuple[int, int]:
        """Returns (number of heads, width of a head) of an attention over `channels`."""
        if self.num_head_channels == -1:
            return self.num_heads, channels // self.num_heads
        return channels // self.num_head_channels, self.num_head_channels

    @property
    def downsampling(self) -> int:
        """Factor between the widest and the narrowest grid of latents."""
        return 2 ** (len(self.channel_mult) - 1)

    @property
    def dual_layers(self) -> int:
        """Number of dual cross-attentions: those on the way down, in the middle, and up."""
        levels = sum(
            2**level in self.attention_resolutions for level in range(len(self.channel_mult))
        )
        return self.transformer_depth * (levels * (2 * self.num_res_blocks + 1) + 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StyleTransformerConfig:
    """The query transformer that turns CLIP image tokens into style tokens."""

    in_dim: int = 1280
    out_dim: int = 1024
    num_heads: int = 8
    num_tokens: int = 8
    n_layers: int = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaleEncoderConfig:
    """The predictor of one style scale for every dual cross-attention layer.

    `num_tokens` is the number of those layers.
    """

    in_dim: int = 1024
    out_dim: int = 1
    num_heads: int = 8
    num_tokens: int = 16
    n_layers: int = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """The style adapter.

    Attributes:
        scale: constant factor on the style branch; the user's style weight multiplies it.
        use_norm: LayerNorm on the style branch (the released model). Without it the branch is
            rescaled to the L2 norm of the text branch, as the original does.
        fusion: `dual` is the method; `attach` appends the style tokens to the text tokens and uses
            the text's own K and V (paper, Table 4, "without dual cross-attention"), with no scale.
        scale_predictor: `None` fixes every layer's scale to 1 (Table 4, "no adaptive fusion").
    """

    scale: float = 1.0
    use_norm: bool = True
    fusion: Fusion = "dual"
    image_context: StyleTransformerConfig = StyleTransformerConfig()
    scale_predictor: ScaleEncoderConfig | None = ScaleEncoderConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """The KL autoencoder of latent diffusion, and the factor between its latents and the UNet's.

    Attributes:
        norm_groups: as in `UNetConfig`.
        patch_size: squares of so many pixels are folded into channels before the encoder, and out
            of them after the decoder; 1 in the original. Fewer stages then have to be learnt, and
            the decoder knows where in a square it is (as in Wan 2.2's and LTX-Video's
            autoencoders).
    """

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = ()
    resolution: int = 256
    in_channels: int = 3
    out_ch: int = 3
    z_channels: int = 4
    double_z: bool = True
    embed_dim: int = 4
    scale_factor: float = 0.18215
    norm_groups: int = 32
    patch_size: int = 1

    def __post_init__(self):
        for mult in self.ch_mult:
            _divides("vae channels", mult * self.ch, "norm_groups", self.norm_groups)

    @property
    def downsampling(self) -> int:
        """Pixels per latent along one side."""
        return self.patch_size * 2 ** (len(self.ch_mult) - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTowerConfig:
    """CLIP's text transformer."""

    context_length: int = 77
    vocab_size: int = 49408
    width: int = 1024
    heads: int = 16
    layers: int = 24

    def __post_init__(self):
        _divides("clip.text.width", self.width, "heads", self.heads)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionTowerConfig:
    """CLIP's image transformer."""

    image_size: int = 224
    patch_size: int = 14
    width: int = 1280
    head_width: int = 80
    layers: int = 32
    mlp_ratio: float = 4.0

    def __post_init__(self):
        _divides("clip.vision.width", self.width, "head_width", self.head_width)
        _divides("clip.vision.image_size", self.image_size, "patch_size", self.patch_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """Both CLIP towers; `layer` names the block after which the text features are taken."""

    embed_dim: int = 1024
    text: TextTowerConfig = TextTowerConfig()
    vision: VisionTowerConfig = VisionTowerConfig()
    quick_gelu: bool = False
    layer: Literal["last", "penultimate"] = "penultimate"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The forward process.

    Attributes:
        prediction: what the UNet's output means.
        zero_terminal_snr: rescale so that the last step is pure noise (Lin et al. 2023, alg. 1).
        use_scale: VideoCrafter2's rescaled signal: x_t = sqrt(alpha_bar) * scale * x0 + ...; the
            scale runs linearly from `scale_a` to `scale_b` over `mid_step` steps and stays.
    """

    linear_start: float = 0.00085
    linear_end: float = 0.012
    timesteps: int = 1000
    prediction: Prediction = "eps"
    zero_terminal_snr: bool = False
    use_scale: bool = False
    scale_a: float = 1.0
    scale_b: float = 0.3
    mid_step: int = 400


@dataclasses.dataclass(frozen=True, kw_only=True)
class SizeConfig:
    """What `generate` makes unless told otherwise: pixels, frames, frames per second.

    `fps` is the playback speed; `condition_fps` is what models with `fps_cond` are told.
    """

    height: int = 320
    width: int = 512
    image_height: int = 512
    image_width: int = 512
    frames: int = 16
    fps: int = 10
    condition_fps: int = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How `generate` samples unless told otherwise; the defaults are the released scripts'.

    Attributes:
        steps: sampling steps.
        sampler: one of `diffusion.samplers.SAMPLERS`.
        text_guidance: of videos, with `style_guidance` as in `diffusion.guidance.Guidance`.
        image_text_guidance: of pictures; likewise `image_style_guidance`.

    Source: StyleCrafter, scripts/run_infer_video.sh and run_infer_image.sh.
    """

    steps: int = 50
    sampler: str = "ddim"
    text_guidance: float = 15.0
    style_guidance: float | None = 7.5
    image_text_guidance: float = 6.0
    image_style_guidance: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole StyleCrafter: every network, the schedule, its native size and sampling."""

    unet: UNetConfig = UNetConfig()
    adapter: AdapterConfig = AdapterConfig()
    vae: AutoencoderConfig = AutoencoderConfig()
    clip: CLIPConfig = CLIPConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    size: SizeConfig = SizeConfig()
    sampling: SamplingConfig = SamplingConfig()

    def __post_init__(self):
        pairs = (
            ("unet.context_dim", self.unet.context_dim, "clip.text.width", self.clip.text.width),
            (
                "adapter.image_context.out_dim",
                self.adapter.image_context.out_dim,
                "unet.context_dim",
                self.unet.context_dim,
            ),
            (
                "adapter.image_context.in_dim",
                self.adapter.image_context.in_dim,
                "clip.vision.width",
                self.clip.vision.width,
            ),
            ("vae.embed_dim", self.vae.embed_dim, "unet.in_channels", self.unet.in_channels),
        )
        for left, left_value, right, right_value in pairs:
            require(
                left_value == right_value,
                f"{left} is {left_value} but {right} is {right_value}; they must agree",
            )
        predictor = self.adapter.scale_predictor
        if predictor is not None:
            require(
                predictor.num_tokens >= self.unet.dual_layers,
                f"adapter.scale_predictor.num_tokens is {predictor.num_tokens} but the unet has "
                f"{self.unet.dual_layers} dual cross-attention layers; each needs one",
            )
            require(
                predictor.in_dim == self.unet.context_dim,
                f"adapter.scale_predictor.in_dim is {predictor.in_dim} but unet.context_dim is "
                f"{self.unet.context_dim}; they must agree",
            )

    @property
    def size_multiple(self) -> int:
        """Height and width must be multiples of this many pixels."""
        return self.vae.downsampling * self.unet.downsampling
