import dataclasses
import json

import pytest

from stylecrafter_jax.config import (
    AdapterConfig,
    AutoencoderConfig,
    CLIPConfig,
    ConfigError,
    ModelConfig,
    ScaleEncoderConfig,
    ScheduleConfig,
    StyleTransformerConfig,
    TextTowerConfig,
    UNetConfig,
    VisionTowerConfig,
)
from stylecrafter_jax.config_json import from_dict, to_dict
from stylecrafter_jax.models.unet_video import dual_attention_names

UNUSUAL = ModelConfig(
    unet=UNetConfig(
        channel_mult=(1, 2),
        attention_resolutions=(),
        num_heads=4,
        num_head_channels=-1,
        addition_attention=False,
        fps_cond=True,
    ),
    adapter=AdapterConfig(scale=0.5, fusion="attach", scale_predictor=None),
    vae=AutoencoderConfig(attn_resolutions=(16, 32)),
    clip=CLIPConfig(quick_gelu=True, layer="last"),
    schedule=ScheduleConfig(prediction="v", zero_terminal_snr=True),
)


@pytest.mark.parametrize("config", [ModelConfig(), UNUSUAL], ids=["released", "unusual"])
def test_config_goes_to_json_and_back(config, tiny_config):
    for each in (config, tiny_config):
        text = json.dumps(to_dict(each))
        assert from_dict(ModelConfig, json.loads(text)) == each


def test_config_is_hashable_and_frozen():
    assert hash(UNUSUAL) == hash(from_dict(ModelConfig, to_dict(UNUSUAL)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        UNUSUAL.unet.fps_cond = False  # pyright: ignore


def test_absent_settings_keep_their_defaults():
    assert from_dict(ModelConfig, {}) == ModelConfig()
    found = from_dict(ModelConfig, {"unet": {"temporal_length": 8}})
    assert found == ModelConfig(unet=UNetConfig(temporal_length=8))


def test_whole_numbers_serve_as_real_ones():
    found = from_dict(AdapterConfig, {"scale": 2})
    assert found.scale == 2.0 and isinstance(found.scale, float)


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (
            UNetConfig,
            {"model_chanels": 64},
            "unknown setting model_chanels; did you mean model_channels?",
        ),
        (UNetConfig, {"zzz": 1}, "unknown setting zzz"),
        (
            ModelConfig,
            {"unet": {"temporal_lenght": 8}},
            "unknown setting unet.temporal_lenght; did you mean temporal_length?",
        ),
        (
            ModelConfig,
            {"adapter": {"image_context": {"heads": 8}}},
            "unknown setting adapter.image_context.heads; did you mean num_heads?",
        ),
        (UNetConfig, {"model_channels": "320"}, "model_channels: wanted int, got '320'"),
        (UNetConfig, {"model_channels": 320.0}, "model_channels: wanted int, got 320.0"),
        (UNetConfig, {"model_channels": True}, "model_channels: wanted int, got True"),
        (UNetConfig, {"fps_cond": 1}, "fps_cond: wanted bool, got 1"),
        (AdapterConfig, {"scale": True}, "scale: wanted float, got True"),
        (AdapterConfig, {"scale": None}, "scale: wanted float, got None"),
        (AdapterConfig, {"fusion": "sum"}, "fusion: wanted one of dual, attach, got 'sum'"),
        (UNetConfig, {"channel_mult": 4}, "channel_mult: wanted a list, got 4"),
        (UNetConfig, {"channel_mult": [1, "2"]}, "channel_mult[1]: wanted int, got '2'"),
        (ModelConfig, {"unet": 3}, "unet: wanted an object, got 3"),
        (ModelConfig, {"unet": None}, "unet: wanted an object, got None"),
    ],
)
def test_wrong_settings_are_named(cls, values, message):
    with pytest.raises(ConfigError) as caught:
        from_dict(cls, values)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: UNetConfig(num_head_channels=-1),
            "one of num_heads and num_head_channels must be set, both are -1",
        ),
        (
            lambda: UNetConfig(num_head_channels=-1, num_heads=8),
            "addition_attention needs num_head_channels, got -1",
        ),
        (
            lambda: UNetConfig(model_channels=48),
            "unet channels 48 is not a multiple of norm_groups 32",
        ),
        (
            lambda: TextTowerConfig(width=100, heads=16),
            "clip.text.width 100 is not a multiple of heads 16",
        ),
        (
            lambda: VisionTowerConfig(head_width=81),
            "clip.vision.width 1280 is not a multiple of head_width 81",
        ),
        (
            lambda: VisionTowerConfig(image_size=225),
            "clip.vision.image_size 225 is not a multiple of patch_size 14",
        ),
        (
            lambda: ModelConfig(unet=UNetConfig(context_dim=768)),
            "unet.context_dim is 768 but clip.text.width is 1024; they must agree",
        ),
        (
            lambda: ModelConfig(
                adapter=AdapterConfig(image_context=StyleTransformerConfig(out_dim=7))
            ),
            "adapter.image_context.out_dim is 7 but unet.context_dim is 1024",
        ),
        (
            lambda: ModelConfig(
                adapter=AdapterConfig(image_context=StyleTransformerConfig(in_dim=7))
            ),
            "adapter.image_context.in_dim is 7 but clip.vision.width is 1280",
        ),
        (
            lambda: ModelConfig(vae=AutoencoderConfig(embed_dim=3)),
            "vae.embed_dim is 3 but unet.in_channels is 4",
        ),
    ],
)
def test_contradictory_settings_are_refused(build, message):
    with pytest.raises(ConfigError) as caught:
        build()
    assert message in str(caught.value)


def test_heads_come_from_their_width_or_their_number():
    assert UNetConfig().heads(640) == (10, 64)
    # The width of a head decides where both are set, as in the original.
    assert UNetConfig(num_heads=4).heads(640) == (10, 64)
    by_number = UNetConfig(num_heads=8, num_head_channels=-1, addition_attention=False)
    assert by_number.heads(640) == (8, 80)


def test_sizes_are_multiples_of_what_the_networks_halve():
    assert ModelConfig().size_multiple == 8 * 8
    assert UNetConfig(channel_mult=(1, 2)).downsampling == 2
    assert AutoencoderConfig(ch_mult=(1,)).downsampling == 1


def test_defaults_are_the_released_models():
    size = ModelConfig().size
    assert (size.height, size.width, size.frames) == (320, 512, 16)
    assert size.height % ModelConfig().size_multiple == 0
    assert size.width % ModelConfig().size_multiple == 0


def test_scale_predictor_has_a_token_for_every_dual_layer():
    unet = UNetConfig(channel_mult=(1, 2, 4), num_res_blocks=3, attention_resolutions=(1, 4))
    assert unet.dual_layers == len(dual_attention_names(unet))
    assert UNetConfig().dual_layers == 16
    few = AdapterConfig(scale_predictor=ScaleEncoderConfig(num_tokens=15))
    with pytest.raises(ConfigError, match="15 but the unet has 16"):
        ModelConfig(adapter=few)
