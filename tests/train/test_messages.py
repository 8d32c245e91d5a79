"""What a training step sends between devices: what is meant, and nothing else."""

import functools
import re

import jax
import numpy as np
import pytest

from stylecrafter_jax import params as weights
from stylecrafter_jax.models.networks import parameter_shapes
from stylecrafter_jax.models.unet_video import unet_plan
from stylecrafter_jax.params import TEMPORAL
from stylecrafter_jax.plan.tasks import training
from stylecrafter_jax.sharding import make_mesh, on_mesh
from stylecrafter_jax.train.experiment import DataConfig, Experiment, MeshConfig, TrainConfig
from tests.collectives import messages
from tests.conftest import SMALL

PICTURES, CLIPS = "step on pictures", "step on clips"
# Of token embeddings, rows are looked up where they lie, and then change places.
LOOKED_UP = r"embeddings/"
# What has no frames, and which XLA may therefore split over the devices that share those of a clip.
NO_FRAMES = r"(FlaxCLIP|StyleTransformer|ScaleEncoder|time_embed|emb_layers|\.1/.*attn2/to_[kv])"
NUMBERS = 100  # at most, of metrics that are sums over all rows
LAYERS = sum(layer.kind == "temporal" for layer in unet_plan(SMALL.unet).layers)
# Frames change places with positions and come back, forward and backward; but the gradient ends at
# the first layer that trains.
TURNS = 4 * LAYERS - 1
TRAINED = weights.select(parameter_shapes(SMALL), TEMPORAL)
# Those of relative positions are added up before they are folded into their tables.
TABLES = weights.count(weights.select(TRAINED, "embeddings_table"))
GRADIENT = weights.count(TRAINED) - TABLES
LARGEST = GRADIENT + 2 * TABLES + NUMBERS

pytestmark = pytest.mark.usefixtures("everything_is_split")


@functools.cache
def sent(name, **axes):
    """Returns the messages of a step of stage 2, by kind; the rest of eight devices is `data`.

    Those of layers without frames are of the kind `no frames`, if the mesh has `frames`.
    """
    data = DataConfig(
        images="pictures",
        videos="clips",
        height=8,
        width=8,
        frames=4,
        style_short_side=16,
        style_size=8,
        image_batch=16,
        video_batch=8,
        image_share=0.5,
    )
    settings = TrainConfig(steps=3, compute_dtype="float32", frozen_dtype="float32")
    experiment = Experiment(
        stage="stage2", bundle="-", data=data, train=settings, mesh=MeshConfig(data=None)
    )
    mesh = make_mesh(np.array(jax.devices()[:8]), **axes)
    programs = training(experiment, SMALL).programs
    program = next(program for program in programs if program.name == name)
    with on_mesh(mesh):
        text = program.traced(mesh).lower().compile().as_text()
    found = {}
    for message in messages(text):
        if not re.search(LOOKED_UP, message.name):
            alike = axes.get("frames", 1) > 1 and re.search(NO_FRAMES, message.name)
            found.setdefault("no frames" if alike else message.kind, []).append(message.values)
    return found


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        pytest.param(PICTURES, 1, marks=pytest.mark.slow),
        pytest.param(CLIPS, 1, marks=pytest.mark.slow),
        (PICTURES, 4),
    ],
)
def test_rows_add_up_their_gradients_alone(name, frames):
    """Pictures are split over the devices that share the frames of clips."""
    found = sent(name, frames=frames)
    assert set(found) == {"all-reduce"}
    assert GRADIENT <= sum(found["all-reduce"]) <= LARGEST


@pytest.mark.slow
def test_frames_change_places_with_positions():
    found = sent(CLIPS, frames=4)
    assert set(found) == {"all-reduce", "all-to-all"} and len(found["all-to-all"]) == TURNS
    # Means and variances of the norms over all frames; gradients are added up over frames and then
    # over rows.
    assert GRADIENT <= sum(found["all-reduce"]) <= 2 * LARGEST
    assert len(found["all-reduce"]) >= 2 * LAYERS


@pytest.mark.slow
@pytest.mark.parametrize("name", [PICTURES, CLIPS])
def test_split_weights_are_gathered(name):
    assert set(sent(name, fsdp=8)) == {"all-gather", "all-reduce"}
    assert GRADIENT <= sum(sent(name, fsdp=8)["all-reduce"]) <= LARGEST


@pytest.mark.slow
def test_split_weights_and_frames_send_what_either_sends():
    both, frames, split = (
        sent(CLIPS, **axes) for axes in ({"frames": 2, "fsdp": 2}, {"frames": 4}, {"fsdp": 8})
    )
    assert set(both) - {"no frames"} == set(frames) | set(split)
    assert len(both["all-to-all"]) == TURNS and sum(both["all-reduce"]) <= 2 * LARGEST
    gathered = sum(both["all-gather"]) + sum(both["no frames"])
    assert len(both["all-gather"]) < len(split["all-gather"])
    assert gathered <= 1.1 * sum(split["all-gather"])


@pytest.mark.slow
def test_pictures_are_split_over_frames_where_weights_are_split_too():
    found, split = sent(PICTURES, frames=2, fsdp=4), sent(PICTURES, fsdp=8)
    assert set(found) - {"no frames"} == set(split)
    both = sum(found["all-gather"]) + sum(found["no frames"])
    assert both == sum(split["all-gather"])
