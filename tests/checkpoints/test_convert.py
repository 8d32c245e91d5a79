"""The original's files become a bundle and come back bit for bit; nothing is lost in silence."""

import copy
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from stylecrafter_jax.checkpoints import clip, layout
from stylecrafter_jax.checkpoints.bundle import load_bundle, read_manifest
from stylecrafter_jax.checkpoints.convert import export_original, exported, import_original
from stylecrafter_jax.checkpoints.describe import describe
from stylecrafter_jax.checkpoints.stylecrafter import FILES, TEXT, UNET, entries
from stylecrafter_jax.checkpoints.torch_files import CheckpointError, read_tensors, write_torch
from stylecrafter_jax.config import ModelConfig, ScheduleConfig
from stylecrafter_jax.diffusion.schedules import buffers, make_schedule
from stylecrafter_jax.models.networks import parameter_shapes
from stylecrafter_jax.params import select
from tests.parity import weights

PARITY = Path(__file__).parents[3] / "shared/parity/videocrafter"
needs_parity = pytest.mark.skipif(not PARITY.is_dir(), reason="the parity cases are absent")
pytest.importorskip("torch", reason="PyTorch's files need PyTorch")

KV = "adapter.kv_attn_layers.input_blocks_1_1_transformer_blocks_0_attn2_processor"


@pytest.fixture(scope="module")
def convert(config, expected):
    def run(out, files, **options):
        options = {"config": config, "expected": expected, "progress": False} | options
        return import_original(out, **files, **options)

    return run


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, convert, files):
    path = tmp_path_factory.mktemp("bundle") / "imported"
    convert(path, files)
    return path


@pytest.fixture(scope="module")
def load(expected):
    return lambda path: load_bundle(path, expected=lambda config: expected)[1]


@pytest.fixture
def changed(original, files, tmp_path):
    """Returns `files` with one of them changed by a function of its content."""

    def write(kind, change):
        content = copy.deepcopy(original[kind])
        content.pop("global_step", None)
        change(content)
        path = tmp_path / FILES[kind].name
        write_torch(path, content)
        return files | {"model_ckpt" if kind == "model" else kind: path}

    return write


def assert_same(got, wanted):
    assert list(got) == list(wanted)
    for name, array in wanted.items():
        if isinstance(array, dict):
            assert_same(got[name], array)
        else:
            assert got[name].dtype == array.dtype and got[name].shape == array.shape, name
            assert got[name].tobytes() == array.tobytes(), name


def test_layouts(bundle, load):
    """Every rule once, against values that are a function of the PyTorch name."""
    ours = load(bundle)

    def torch(name, *shape):
        return weights.tensor(name, shape)

    kernel = torch(UNET + "time_embed.0.weight", 128, 32)
    assert np.array_equal(ours["unet/time_embed/0/kernel"], kernel.T)
    kernel = torch("first_stage_model.decoder.conv_in.weight", 128, 4, 3, 3)
    assert np.array_equal(ours["vae/decoder/conv_in/kernel"], kernel.transpose(2, 3, 1, 0))
    kernel = torch(f"temporal {UNET}init_attn.0.proj_in.weight", 128, 32, 1)
    assert np.array_equal(ours["unet/init_attn.0/proj_in/kernel"], kernel.transpose(2, 1, 0))
    name = "init_attn.0.transformer_blocks.0.attn1.relative_position_k.embeddings_table"
    table = ours["unet/init_attn.0/transformer_blocks.0/attn1/relative_position_k/embeddings_table"]
    assert np.array_equal(table, torch(f"temporal {UNET}{name}", 9, 16))
    style = "unet/input_blocks.1.1/transformer_blocks.0/attn2/"
    assert np.array_equal(
        ours[style + "to_k_style/kernel"], torch(f"{KV}.to_k_style.weight", 32, 24).T
    )
    assert np.array_equal(ours[style + "norm_style/scale"], torch(f"{KV}.norm_style.weight", 32))
    proj = torch("adapter.image_context_model.proj", 40, 24)
    assert np.array_equal(ours["adapter/image_context_model/proj"], proj)
    stacked = torch(TEXT + "transformer.resblocks.2.attn.in_proj_weight", 72, 24)
    offsets = torch(TEXT + "transformer.resblocks.2.attn.in_proj_bias", 72)
    for i, letter in enumerate("qkv"):
        layer = f"text_encoder/text_model/encoder/layers/2/self_attn/{letter}_proj/"
        assert np.array_equal(ours[layer + "kernel"], stacked[24 * i : 24 * (i + 1)].T)
        assert np.array_equal(ours[layer + "bias"], offsets[24 * i : 24 * (i + 1)])
    raw = torch(TEXT + "text_projection", 24, 20)
    assert np.array_equal(ours["text_encoder/text_projection/kernel"], raw)
    raw = torch(TEXT + "visual.proj", 40, 20)
    assert np.array_equal(ours["image_encoder/visual_projection/kernel"], raw)
    positions = ours["text_encoder/text_model/embeddings/position_embedding/embedding"]
    assert np.array_equal(positions, torch(TEXT + "positional_embedding", 77, 24))
    assert ours["text_encoder/logit_scale"] == torch(TEXT + "logit_scale")


def test_export_undoes_import(tmp_path, bundle, original, expected, convert):
    paths = export_original(bundle, tmp_path / "out", expected=lambda config: expected)
    assert {path.name for path in paths} == {file.name for file in FILES.values()}
    merged = dict(original["model"]["state_dict"])
    for module, rows in original["temporal"].items():
        merged |= {f"{UNET}{module}.{row}": array for row, array in rows.items()}
    wanted = {**original, "model": merged, "temporal": _flat(original["temporal"])}
    again = {}
    for kind, file in FILES.items():
        path = tmp_path / "out" / file.name
        assert_same(read_tensors(path), wanted[kind])
        again["model_ckpt" if kind == "model" else kind] = path
    convert(tmp_path / "again", again)
    assert read_manifest(tmp_path / "again") == read_manifest(bundle)


def _flat(modules):
    return {f"{module}.{row}": a for module, rows in modules.items() for row, a in rows.items()}


def test_export_is_nested_as_released(config, bundle, original, load):
    params = load(bundle)
    assert_same(exported("temporal", config, params), original["temporal"])
    assert list(exported("model", config, params)) == ["state_dict"]
    assert_same(exported("adapter", config, params), original["adapter"])


def test_existing_files_are_not_overwritten_by_export(tmp_path, bundle, expected):
    (tmp_path / "model.ckpt").write_text("precious")
    with pytest.raises(CheckpointError, match="model.ckpt already exists"):
        export_original(bundle, tmp_path, expected=lambda config: expected)
    assert [path.name for path in tmp_path.iterdir()] == ["model.ckpt"]
    shapes = {"expected": lambda config: expected}
    assert export_original(bundle, tmp_path, what=["adapter"], **shapes)
    assert (tmp_path / "model.ckpt").read_text() == "precious"


def test_a_whole_inference_model_is_imported_from_one_file(
    tmp_path, original, bundle, convert, load
):
    whole = dict(original["model"]["state_dict"])
    for kind in ("temporal", "adapter", "open_clip"):
        content = _flat(original[kind]) if kind == "temporal" else original[kind]
        whole |= {FILES[kind].prefix + name: array for name, array in content.items()}
    write_torch(tmp_path / "whole.ckpt", {"state_dict": whole})
    left_out = convert(tmp_path / "b", {"model_ckpt": tmp_path / "whole.ckpt"})
    assert_same(load(tmp_path / "b"), load(bundle))
    assert sum(len(names) for names in left_out.values()) == 12 + len(
        [name for name in original["open_clip"] if not name.startswith("visual.")]
    )


def test_temporal_weights_of_the_base_stay_without_a_temporal_file(
    tmp_path, files, original, convert, load
):
    convert(tmp_path / "b", files | {"temporal": None})
    name = "init_attn.0.proj_in.bias"
    ours = load(tmp_path / "b")["unet/init_attn.0/proj_in/bias"]
    assert np.array_equal(ours, original["model"]["state_dict"][UNET + name])


def test_without_adapter_the_bundle_is_a_base_model(tmp_path, files, convert, expected):
    base = {"model_ckpt": files["model_ckpt"]}
    convert(tmp_path / "b", base)
    parts = {part.name for part in describe(tmp_path / "b").parts}
    assert parts == {"unet", "vae", "text_encoder"}
    written = export_original(tmp_path / "b", tmp_path, expected=lambda config: expected)
    assert [path.name for path in written] == ["model.ckpt", "temporal_v1_1.pth"]
    with pytest.raises(CheckpointError, match="needs the image tower of open_clip"):
        convert(tmp_path / "c", base | {"adapter": files["adapter"]})
    assert not (tmp_path / "c").exists()


def test_the_text_tower_comes_from_open_clip_where_the_model_has_none(
    tmp_path, changed, convert, load, bundle
):
    def drop(content):
        for name in [name for name in content["state_dict"] if name.startswith(TEXT)]:
            del content["state_dict"][name]

    convert(tmp_path / "b", changed("model", drop))
    assert_same(load(tmp_path / "b"), load(bundle))


def test_dtype_is_the_stored_one_unless_asked(tmp_path, files, convert, load, bundle):
    convert(tmp_path / "b", files, dtype=jnp.bfloat16)
    full, half = load(bundle), load(tmp_path / "b")
    for name, array in half.items():
        assert array.dtype == jnp.bfloat16
        assert np.array_equal(array, full[name].astype(jnp.bfloat16))


def _scale(name, factor):
    def change(content):
        tensors = content.get("state_dict", content)
        tensors[name] = tensors[name] * np.float32(factor)

    return change


def test_values_that_the_dtype_cannot_hold_are_refused(tmp_path, changed, convert):
    huge = changed("model", _scale(UNET + "out.2.bias", 1e7))
    with pytest.raises(CheckpointError, match="unet/out.2/bias has .* infinite as float16"):
        convert(tmp_path / "b", huge, dtype=np.float16)
    assert not (tmp_path / "b").exists()
    convert(tmp_path / "b", huge)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_tensors_are_refused_and_leave_what_was_there(
    tmp_path, changed, files, convert, value
):
    convert(tmp_path / "b", files)
    before = read_manifest(tmp_path / "b")
    bad = changed("adapter", _scale("image_context_model.proj", value))
    with pytest.raises(CheckpointError, match="adapter/image_context_model/proj has 960 of 960"):
        convert(tmp_path / "b", bad, overwrite=True)
    assert read_manifest(tmp_path / "b") == before and describe(tmp_path / "b").problems == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_v1.pth", "b"]


def test_all_differences_are_listed_at_once(tmp_path, changed, convert):
    def spoil(content):
        tensors = content["state_dict"]
        del tensors[UNET + "out.2.bias"]
        tensors["first_stage_model.quant_conv.bias"] = np.ones(9, np.float32)
        tensors["model.diffusion_model.surprise.weight"] = np.ones(1, np.float32)

    wrong = changed("model", spoil)
    with pytest.raises(CheckpointError) as error:
        convert(tmp_path / "b", wrong)
    assert f"1 missing: {UNET}out.2.bias" in str(error.value)
    assert f"1 unused: {UNET}surprise.weight" in str(error.value)
    assert "first_stage_model.quant_conv.bias is (9,), wanted (8,)" in str(error.value)
    assert not (tmp_path / "b").exists()


def test_known_and_named_extras_are_left_out(tmp_path, changed, convert, load, bundle):
    extras = ["model_ema.decay", "logvar", "first_stage_model.loss.logvar", "surprise"]

    def add(content):
        content["state_dict"] |= {name: np.ones(1, np.float32) for name in extras}

    left_out = convert(tmp_path / "b", changed("model", add), ignore=["^surprise$"])
    assert {name for names in left_out.values() for name in names} >= set(extras)
    assert left_out["left out as asked"] == ["surprise"]
    assert_same(load(tmp_path / "b"), load(bundle))


def test_files_in_each_others_place_are_named(tmp_path, files, convert):
    for change, reason in (
        ({"adapter": files["temporal"]}, "adapter_v1.pth; this looks like temporal_v1_1.pth"),
        ({"open_clip": files["model_ckpt"]}, "open_clip_pytorch_model.bin; this looks like model"),
        ({"model_ckpt": files["adapter"]}, "model.ckpt; this looks like adapter_v1.pth"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            convert(tmp_path / "b", files | change)


def test_a_partial_temporal_file_is_refused(tmp_path, changed, convert):
    def cut(content):
        del content["middle_block.2"]["norm.bias"]

    with pytest.raises(CheckpointError, match="temporal_v1_1.pth lacks 1: unet/middle_block.2"):
        convert(tmp_path / "b", changed("temporal", cut))


def test_another_schedule_is_refused(tmp_path, changed, convert):
    with pytest.raises(CheckpointError, match="alphas_cumprod of the files is not that of"):
        convert(tmp_path / "b", changed("model", _scale("alphas_cumprod", 0.99)))


def test_a_full_disk_is_foreseen(tmp_path, files, convert, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(CheckpointError, match="GiB are free"):
        convert(tmp_path / "b", files)


def test_describe_names_the_originals_files(files, original):
    description = describe(files["model_ckpt"])
    assert description.kind == "model.ckpt" and description.problems == []
    parts = {part.name: part for part in description.parts}
    unused = [name for name in parts if name.startswith("not used")]
    assert parts.keys() - unused == {"unet", "vae", "text_encoder"}
    assert sum(parts[name].tensors for name in unused) == 12
    assert describe(files["temporal"]).kind == "temporal_v1_1.pth"
    assert [part.name for part in describe(files["adapter"]).parts] == ["adapter"]


def test_a_hugging_face_image_tower_makes_the_same_bundle(
    tmp_path, files, bundle, load, convert, expected
):
    towers = select(load(bundle), "^(text|image)_encoder/")
    table = {name: clip.huggingface(name) for name in towers}
    content = dict(layout.state_dict(table, towers))
    content["vision_model.embeddings.position_ids"] = np.arange(50)[None]
    write_torch(tmp_path / "pytorch_model.bin", content)
    convert(tmp_path / "b", files | {"open_clip": tmp_path / "pytorch_model.bin"})
    assert_same(load(tmp_path / "b"), load(bundle))


def _rows(kind, expected):
    shapes = {
        e.name: layout.shape(e, expected[n].shape) for n, e in entries(kind, expected).items()
    }
    return [[name, list(shapes[name]), "float32"] for name in sorted(shapes, key=layout.order)]


@pytest.fixture(scope="module")
def full_size():
    return parameter_shapes(ModelConfig())


@needs_parity
@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("model", "t2v_model_ckpt.json"),
        ("temporal", "temporal_v1_1.json"),
        ("adapter", "adapter_v1.json"),
        ("open_clip", "open_clip_vit_h_14.json"),
    ],
)
def test_full_size_names_shapes_and_order_are_the_originals(kind, file, full_size):
    rows = _rows(kind, full_size)
    wanted = json.loads((PARITY / "full_state_dicts" / file).read_text())
    if kind == "model":
        tables = buffers(make_schedule(ScheduleConfig()))
        rows = [[name, list(a.shape), a.dtype.name] for name, a in tables.items()] + rows
    if kind == "temporal":
        wanted = [[f"{m}.{name}", *rest] for m, rows in wanted.items() for name, *rest in rows]
    assert rows == wanted


@needs_parity
def test_the_tiny_model_has_the_names_of_its_parity_case(expected):
    wanted = json.loads((PARITY / "pipeline_tiny/manifest.json").read_text())
    wanted = {name: shape for name, shape in wanted if not name.endswith("token_embedding.weight")}
    found = {}
    for kind in ("model", "adapter", "open_clip"):
        prefix = FILES[kind].prefix
        found |= {prefix + name: shape for name, shape, _ in _rows(kind, expected)}
    # The original's style encoder drops the blocks of its text tower.
    dropped = [n for n in found if n.startswith("style_stage_model.model.transformer.")]
    found = {n: s for n, s in found.items() if n not in dropped and "token_embedding" not in n}
    assert found == wanted
