import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stylecrafter_jax import params as weights
from stylecrafter_jax.config import CLIPConfig, ModelConfig, TextTowerConfig, VisionTowerConfig
from stylecrafter_jax.models.networks import parameter_shapes
from stylecrafter_jax.models.unet_video import dual_attention_names

RELEASED = Path(__file__).parents[2] / "shared/parity/videocrafter/full_state_dicts"
FLAT = {"unet/out.0/scale": 1, "unet/out.0/bias": 2, "vae/conv/kernel": 3, "top": 4}
NESTED = {"unet": {"out.0": {"scale": 1, "bias": 2}}, "vae": {"conv": {"kernel": 3}}, "top": 4}


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_nest_and_flatten_are_inverse(tiny_params):
    assert weights.nest(FLAT) == NESTED
    assert weights.flatten(NESTED) == FLAT
    again = weights.flatten(weights.nest(tiny_params))
    assert again.keys() == tiny_params.keys()
    assert all(again[name] is tiny_params[name] for name in tiny_params)


def test_flatten_puts_a_prefix_before_every_name():
    assert weights.flatten({"a": {"b": 1}}, "unet") == {"unet/a/b": 1}


def test_part_is_one_parts_parameters_without_its_name():
    assert weights.part(FLAT, "unet") == {"out.0/scale": 1, "out.0/bias": 2}
    assert weights.part({"unet2/a": 1, "unet/a": 2}, "unet") == {"a": 2}
    assert weights.part({"a/b/c": 1}, "a/b") == {"c": 1}


def test_parts_cover_the_model(tiny_params):
    found = [weights.part(tiny_params, name) for name in weights.PARTS]
    assert all(found)
    assert sum(map(len, found)) == len(tiny_params)


def test_select_takes_names_that_match():
    assert weights.select(FLAT, r"^unet/.*bias$") == {"unet/out.0/bias": 2}
    assert weights.select(FLAT, "no such name") == {}


def test_size_and_type():
    params = {"a": np.zeros((2, 3), np.float32), "b": np.zeros((), np.float16)}
    assert weights.count(params) == 7
    assert weights.nbytes(params) == 26
    half = weights.cast(params, jnp.bfloat16)
    assert {value.dtype for value in half.values()} == {jnp.dtype("bfloat16")}
    assert weights.nbytes(half) == 14


def test_nothing_to_say_where_names_and_shapes_agree():
    expected = {"a": shape(2, 3), "b": shape()}
    assert weights.mismatches(expected, {"b": np.zeros(()), "a": np.zeros((2, 3))}) == []


def test_mismatches_are_one_line_for_each_kind():
    expected = {"a": shape(2, 3), "b": shape(4), "c": shape()}
    got = {"a": np.zeros((3, 2)), "c": np.zeros(()), "z": np.zeros(1), "y": np.zeros(1)}
    assert weights.mismatches(expected, got) == [
        "1 missing: b",
        "2 unused: y, z",
        "1 misshapen: a is (3, 2), wanted (2, 3)",
    ]


def test_long_lists_of_mismatches_are_cut():
    expected = {f"n{i}": shape() for i in range(12)}
    assert weights.mismatches(expected, {}, limit=2) == ["12 missing: n0, n1 and 10 more"]
    (line,) = weights.mismatches(expected, {})
    assert line.endswith(" and 4 more")


@pytest.fixture(scope="module")
def released_shapes():
    # The towers are in neither file; they are cut to save time.
    text, vision = TextTowerConfig(layers=1), VisionTowerConfig(layers=1)
    return parameter_shapes(ModelConfig(clip=CLIPConfig(text=text, vision=vision)))


def read(name):
    file = RELEASED / name
    if not file.exists():
        pytest.skip("the lists of the released state dicts are not here")
    return json.loads(file.read_text())


def torch_layout(name, shape):
    """Returns our shape as PyTorch has it."""
    kernel = name.endswith("/kernel")
    return (shape[-1], shape[-2], *shape[:-2]) if kernel else tuple(shape)


def torch_leaf(name):
    dotted = name.replace("/", ".")
    return re.sub(r"\.(kernel|scale|embedding)$", ".weight", dotted)


def test_temporal_pattern_selects_the_released_temporal_file(released_shapes):
    modules = read("temporal_v1_1.json")
    theirs = {f"{module}.{row[0]}": tuple(row[1]) for module in modules for row in modules[module]}
    ours = {
        torch_leaf(name).removeprefix("unet."): torch_layout(name, value.shape)
        for name, value in weights.select(released_shapes, weights.TEMPORAL).items()
    }
    assert len(theirs) == 510
    assert ours == theirs


def test_adapter_pattern_selects_the_released_adapter_file(released_shapes):
    theirs = {name: tuple(shape) for name, shape, _ in read("adapter_v1.json")}

    def adapters_name(name):
        name = torch_leaf(name)
        if name.startswith("adapter."):
            return name.removeprefix("adapter.")
        path, leaf = name.removeprefix("unet.").split(".attn2.")
        return f"kv_attn_layers.{path.replace('.', '_')}_attn2_processor.{leaf}"

    ours = {
        adapters_name(name): torch_layout(name, value.shape)
        for name, value in weights.select(released_shapes, weights.ADAPTER).items()
    }
    assert len(theirs) == 139
    assert ours == theirs


def test_scales_are_in_the_order_of_the_released_layers():
    rows = read("adapter_v1.json")
    found = [re.match(r"kv_attn_layers\.(\w+)_processor", name) for name, *_ in rows]
    theirs = list(dict.fromkeys(match[1] for match in found if match))
    ours = dual_attention_names(ModelConfig().unet)
    assert [name.replace(".", "_").replace("/", "_") for name in ours] == theirs


def test_adapter_and_temporal_weights_are_apart(released_shapes):
    adapter = weights.select(released_shapes, weights.ADAPTER)
    temporal = weights.select(released_shapes, weights.TEMPORAL)
    assert not adapter.keys() & temporal.keys()
    assert weights.select(adapter, weights.STYLE_ATTENTION).keys() < adapter.keys()


def test_a_unet_without_temporal_attention_has_no_temporal_weights(tiny_config):
    unet = dataclasses.replace(tiny_config.unet, temporal_attention=False, addition_attention=False)
    shapes = parameter_shapes(dataclasses.replace(tiny_config, unet=unet))
    assert weights.select(shapes, weights.TEMPORAL) == {}
