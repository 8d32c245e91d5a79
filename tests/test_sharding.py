"""Any mesh computes what one device computes; every rule splits something."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from stylecrafter_jax import sharding
from stylecrafter_jax.config import ModelConfig
from stylecrafter_jax.models.networks import networks, parameter_shapes
from stylecrafter_jax.models.unet_video import unet_plan
from stylecrafter_jax.sharding import RULES, make_mesh, parse_mesh, put_weights, weight_spec
from tests.collectives import sent
from tests.conftest import SMALL
from tests.parity import weights as drawn

MESHES = {
    "data": {},
    "fsdp": {"fsdp": 8},
    "tensor": {"tensor": 2},
    "frames": {"frames": 4},
    "all": {"fsdp": 2, "frames": 2, "tensor": 2},
}


pytestmark = pytest.mark.usefixtures("everything_is_split")


@functools.cache
def problem():
    """The UNet's squared output, by its weights, on eight videos of four frames."""
    nets = networks(SMALL)
    params = {
        name: jnp.asarray(drawn.tensor(name, shape.shape))
        for name, shape in parameter_shapes(SMALL).items()
        if name.startswith("unet/")
    }
    rng = np.random.default_rng(0)
    sizes = {"x": (8, 4, 2, 4, 4), "text": (8, 5, 24), "style": (8, 3, 24)}
    batch = {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    batch["t"] = np.linspace(0, 900, 8).astype(np.float32)

    def loss(params, batch):
        out = nets.unet(params, batch["x"], batch["t"], batch["text"], batch["style"], mode="video")
        return jnp.mean(jnp.square(out)), out

    return params, batch, jax.value_and_grad(loss, has_aux=True)


@functools.cache
def on_one_device():
    params, batch, gradient = problem()
    return jax.jit(gradient)(params, batch)


def compiled(mesh, function, params, batch, layout="weights"):
    rows = NamedSharding(mesh, PartitionSpec(sharding.BATCH_AXES))
    placed = put_weights(params, mesh, layout), jax.device_put(batch, rows)
    with jax.set_mesh(mesh):
        return jax.jit(function).lower(*placed).compile(), placed


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in ("data", "fsdp") else [])
        for name in MESHES
    ],
)
def test_loss_gradients_and_output_are_those_of_one_device(name):
    params, batch, gradient = problem()
    mesh = make_mesh(np.array(jax.devices()[:8]), **MESHES[name])
    program, placed = compiled(mesh, gradient, params, batch)
    (loss, out), grads = program(*placed)
    (wanted, wanted_out), wanted_grads = on_one_device()
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    np.testing.assert_allclose(out, wanted_out, atol=1e-4)
    # Some gradients are zero but for rounding: a bias before the norm of a single channel.
    largest = max(float(jnp.abs(grad).max()) for grad in wanted_grads.values())
    for parameter, grad in wanted_grads.items():
        scale = max(float(jnp.abs(grad).max()), 0.01 * largest)
        np.testing.assert_allclose(
            grads[parameter] / scale, grad / scale, atol=1e-4, err_msg=parameter
        )


# What each kind of layer sends. Frames change places with positions and come back, and the norm
# over all frames adds up mean and variance. Of heads and channels, each product that takes split
# ones adds up its results: a residual block's second convolution, the way out of an attention and
# of a feed-forward; and so do mean and variance of the style's norm, which runs over all heads.
OVER_FRAMES = {"temporal": {"all-to-all": 2, "all-reduce": 2}}
OVER_HEADS = {
    "res": {"all-reduce": 1},
    "spatial": {"all-reduce": 3 + 2},
    "temporal": {"all-reduce": 3},
}


@pytest.mark.parametrize(
    ("sizes", "laws"),
    [
        ({}, []),
        ({"frames": 4}, [OVER_FRAMES]),
        ({"tensor": 2}, [OVER_HEADS]),
        ({"frames": 2, "tensor": 2}, [OVER_FRAMES, OVER_HEADS]),
    ],
)
def test_messages_are_those_that_are_meant_and_no_others(sizes, laws):
    wanted = collections.Counter()
    for layer in unet_plan(SMALL.unet).layers:
        for law in laws:
            wanted.update(law.get(layer.kind, {}))
    assert forward_sends(sizes) == wanted


def test_messages_of_split_weights_gather_them():
    assert set(forward_sends({"fsdp": 8})) == {"all-gather"}


@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"fsdp": 4, "tensor": 2}])
def test_replicated_weights_are_not_gathered(axes):
    assert forward_sends(axes, "replicated") == forward_sends(axes | {"fsdp": 1})


@pytest.mark.parametrize("rows", [8, pytest.param(3, marks=pytest.mark.slow)])
def test_pictures_are_split_over_the_devices_of_frames(rows):
    """One by one where their number is even, and then nothing is sent."""
    params, batch, _ = problem()
    pictures = {name: x[:rows, :1] if name == "x" else x[:rows] for name, x in batch.items()}

    def run(params, batch):
        own = (batch[key] for key in ("x", "t", "text", "style"))
        return networks(SMALL).unet(params, *own, mode="image")

    mesh = make_mesh(np.array(jax.devices()[:4]), frames=4)
    program, placed = compiled(mesh, run, params, pictures)
    assert bool(sent(program.as_text())) == (rows % 4 > 0)
    wanted = jax.jit(run)(params, pictures)
    np.testing.assert_allclose(program(*placed), wanted, atol=1e-4)


def forward_sends(sizes, layout="weights"):
    """Returns how many messages of each kind a forward pass of the UNet sends."""
    params, batch, _ = problem()

    def run(params, batch):
        own = (batch[key] for key in ("x", "t", "text", "style"))
        return networks(SMALL).unet(params, *own, mode="video")

    mesh = make_mesh(np.array(jax.devices()[:8]), **sizes)
    program, _ = compiled(mesh, run, params, batch, layout)
    return sent(program.as_text())


def test_every_rule_matches_a_parameter_of_the_full_size_model_and_none_is_forgotten():
    names = list(parameter_shapes(ModelConfig()))
    first = [
        next(i for i, (pattern, _) in enumerate(RULES) if re.search(pattern, name))
        for name in names
    ]
    assert set(first) == set(range(len(RULES)))
    mesh = make_mesh(np.array(jax.devices()[:8]), fsdp=2, tensor=2)
    shapes = parameter_shapes(ModelConfig())
    whole = sum(np.prod(shape.shape) for shape in shapes.values())
    held = sum(
        np.prod(NamedSharding(mesh, weight_spec(mesh, name, shape.shape)).shard_shape(shape.shape))
        for name, shape in shapes.items()
    )
    assert held < 0.5 * whole  # fsdp alone would make it a half


@pytest.mark.parametrize("layout", ["weights", "replicated"])
def test_what_a_device_holds_is_known_before_it_is_there(layout):
    rng = np.random.default_rng(0)
    names = ("a/to_q/kernel", "a/to_out.0/kernel", "a/conv/kernel", "a/norm/scale")
    sizes = ((64, 64), (64, 63), (3, 3, 16, 64), (64,))
    tree = {n: rng.standard_normal(s, np.float32) for n, s in zip(names, sizes, strict=True)}
    axes = {"fsdp": 2, "tensor": 2}
    there = put_weights(tree, make_mesh(np.array(jax.devices()[:8]), **axes), layout)
    held = sum(x.addressable_shards[0].data.nbytes for x in there.values())
    mesh = sharding.sizes_of({"data": 2, **axes})
    assert sharding.bytes_on_a_device(tree, mesh, layout) == held
    if layout == "replicated":
        wanted = sharding.weight_specs(sharding.sizes_of({"tensor": 2}), tree)
        assert {name: x.sharding.spec for name, x in there.items()} == wanted


def test_videos_have_rows_and_frames_split_where_their_numbers_are_even():
    mesh = make_mesh(np.array(jax.devices()[:8]), fsdp=2, frames=2)
    videos = [jnp.zeros((rows, frames, 2, 2, 1)) for rows, frames in ((4, 4), (3, 4), (4, 3))]
    rows = ("data", "fsdp")
    wanted = [PartitionSpec(*sides) for sides in ((rows, "frames"), (None, "frames"), (rows, None))]
    assert sharding.specs(mesh, videos, "videos") == wanted
    with jax.set_mesh(mesh):
        stay = jax.jit(lambda x: sharding.stay(x, "videos"))
        found = [
            x.sharding.is_equivalent_to(NamedSharding(mesh, spec), 5)
            for x, spec in zip(stay(videos), wanted, strict=True)
        ]
    assert all(found)


def test_moments_lie_as_their_parameters():
    mesh = make_mesh(np.array(jax.devices()[:8]), fsdp=4, tensor=2)
    name = "unet/middle_block.1/transformer_blocks.0/attn1/to_q/kernel"
    trained = {name: jnp.ones((64, 64)), "unet/out.2/bias": jnp.ones(4)}
    state = put_weights(optax.adamw(1e-3).init(trained), mesh)
    moments = state[0]
    for tree in (moments.mu, moments.nu):
        assert tree[name].sharding.spec == PartitionSpec("fsdp", "tensor")
        assert tree["unet/out.2/bias"].is_fully_replicated
    assert moments.count.is_fully_replicated


def test_an_axis_that_does_not_divide_its_side_is_left_out():
    mesh = make_mesh(np.array(jax.devices()[:8]), fsdp=4, tensor=2)
    spec = functools.partial(weight_spec, mesh)
    assert spec("a/to_q/kernel", (63, 64)) == PartitionSpec(None, "tensor")
    assert spec("a/to_q/kernel", (64, 63)) == PartitionSpec("fsdp", None)
    assert spec("a/conv/kernel", (3, 3, 4, 63)) == PartitionSpec(None, None, "fsdp", None)
    assert spec("a/conv/kernel", (3, 3, 6, 64)) == PartitionSpec(None, None, None, "fsdp")
    assert spec("a/to_q/kernel", (7, 9)) == PartitionSpec()


def test_meshes_are_read_from_text():
    assert parse_mesh("data=2, frames=4") == {"data": 2, "frames": 4}
    for wrong in ("data", "data=0", "model=2", "data=2,data=2", "data=-1", ""):
        with pytest.raises(ValueError, match="a mesh is such as data=2,frames=4"):
            parse_mesh(wrong)


class Chip:
    """A device as a mesh sees it, of a machine that is not here."""

    platform, device_kind = "tpu", "unknown"

    def __init__(self, number, slice_index):
        self.id, self.process_index = number, number // 4
        self.slice_index, self.core_on_chip = slice_index, 0
        self.coords = (number // 2 % 2, number // 4, 0)  # each slice is 2x2


def test_slices_share_the_data_axis_alone():
    chips = np.array([Chip(i, slice_index=i % 2) for i in range(8)])
    mesh = make_mesh(chips, frames=2)
    by_group = [{chip.slice_index for chip in group.flat} for group in mesh.devices]
    assert by_group == [{0}, {0}, {1}, {1}]
    with pytest.raises(ValueError, match="data 1 cannot be split over 2 slices"):
        make_mesh(chips, frames=8)
    with pytest.raises(ValueError, match="8 devices are no multiple of frames 3"):
        make_mesh(chips, frames=3)
