"""A bundle is written wholly or not at all, and nothing but what was written is loaded."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from stylecrafter_jax.checkpoints.bundle import BundleWriter, load_bundle, part_of, read_manifest
from stylecrafter_jax.checkpoints.describe import describe
from stylecrafter_jax.checkpoints.torch_files import CheckpointError
from stylecrafter_jax.params import PARTS


def write(path, config, params, **options):
    with BundleWriter(path, config, **options) as writer:
        for name, array in params.items():
            writer.add(name, array)


def assert_same(got, wanted):
    assert got.keys() == wanted.keys()
    for name, array in wanted.items():
        assert got[name].dtype == array.dtype and got[name].shape == array.shape, name
        assert got[name].tobytes() == array.tobytes(), name


def snapshot(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="session")
def shapes(expected):
    return lambda config: expected


@pytest.fixture(scope="session")
def whole(tmp_path_factory, config, params):
    path = tmp_path_factory.mktemp("bundles") / "whole"
    write(path, config, params)
    return path


@pytest.fixture
def bundle(tmp_path, whole):
    """A copy of the whole bundle, to damage."""
    path = tmp_path / "copy"
    path.mkdir()
    for name, content in snapshot(whole).items():
        (path / name).write_bytes(content)
    return path


def failure(path, shapes, **options):
    with pytest.raises(CheckpointError) as error:
        load_bundle(path, expected=shapes, **options)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_bit_survives_a_round_trip(tmp_path, config, params, shapes, dtype):
    cast = {name: array.astype(jnp.dtype(dtype)) for name, array in params.items()}
    write(tmp_path / "b", config, cast)
    loaded_config, loaded = load_bundle(tmp_path / "b", expected=shapes, verify="hash")
    assert loaded_config == config
    assert_same(loaded, cast)
    assert not any(array.flags.writeable for array in loaded.values())


def test_jax_arrays_are_written_too(tmp_path, config, params, shapes):
    arrays = {name: jnp.asarray(a) for name, a in params.items() if name.startswith("vae/quant")}
    write(tmp_path / "b", config, arrays)
    with BundleWriter(tmp_path / "c", config) as writer:
        for name in arrays:
            writer.add(name, params[name])
    assert (tmp_path / "b/vae.safetensors").read_bytes() == (
        tmp_path / "c/vae.safetensors"
    ).read_bytes()


def test_files_are_by_part_and_the_style_attention_is_the_adapters(whole):
    names = {path.name for path in whole.iterdir()}
    assert names == {f"{part}.safetensors" for part in PARTS} | {"config.json", "manifest.json"}
    style = [name for name in load_file(whole / "adapter.safetensors") if name.startswith("unet/")]
    assert all(
        path.stat().st_mode & 0o666 == whole.stat().st_mode & 0o666 for path in whole.iterdir()
    )
    assert len(style) == 10 * 4 and all("_style/" in name for name in style)


def test_large_parts_are_sharded(tmp_path, config, params, shapes):
    write(tmp_path / "b", config, params, shard_bytes=4 * 2**20)
    shards = sorted((tmp_path / "b").glob("unet-*.safetensors"))
    assert [path.name for path in shards] == [
        f"unet-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)
    ]
    assert len(shards) > 2 and all(path.stat().st_size < 4.1 * 2**20 for path in shards)
    assert_same(load_bundle(tmp_path / "b", expected=shapes)[1], params)


def test_tensors_of_many_parts_in_any_order_are_kept(tmp_path, config, params, shapes):
    mixed = dict(sorted(params.items(), key=lambda item: item[0][::-1]))
    write(tmp_path / "b", config, mixed, shard_bytes=2**20)
    assert_same(load_bundle(tmp_path / "b", expected=shapes, verify="hash")[1], params)


def test_parts_are_loaded_alone(bundle, shapes, params):
    for path in bundle.glob("*.safetensors"):
        if path.stem not in ("vae", "adapter"):
            path.unlink()
    _, loaded = load_bundle(bundle, expected=shapes, parts=["vae", "adapter"], verify="hash")
    assert_same(loaded, {k: v for k, v in params.items() if part_of(k) in ("vae", "adapter")})


def test_a_bundle_without_an_adapter_is_a_base_model(tmp_path, config, params, shapes):
    base = {k: v for k, v in params.items() if part_of(k) not in ("adapter", "image_encoder")}
    write(tmp_path / "b", config, base)
    assert_same(load_bundle(tmp_path / "b", expected=shapes)[1], base)
    message = failure(tmp_path / "b", shapes, parts=["unet", "adapter"])
    assert "has no adapter; it has unet, vae, text_encoder" in message


def test_other_files_are_kept(tmp_path, config, params):
    with BundleWriter(tmp_path / "b", config) as writer:
        writer.add("vae/quant_conv/bias", params["vae/quant_conv/bias"])
        writer.add_file("tokenizer/merges.txt", b"a b\n")
    assert (tmp_path / "b/tokenizer/merges.txt").read_bytes() == b"a b\n"
    assert describe(tmp_path / "b").problems == []
    with BundleWriter(tmp_path / "c", config) as writer:
        writer.add_files_of(tmp_path / "b")
    assert sorted(read_manifest(tmp_path / "c")) == ["config.json", "tokenizer/merges.txt"]
    assert (tmp_path / "c/tokenizer/merges.txt").read_bytes() == b"a b\n"


@pytest.mark.parametrize(
    ("name", "array", "reason"),
    [
        ("vae/a/kernel", np.array([[1, np.nan]], np.float32), "vae/a/kernel has 1 of 2 values"),
        ("vae/a/bias", np.array([-np.inf], jnp.bfloat16), "vae/a/bias has 1 of 1 values"),
        ("vae/a/bias", np.array([1, 2]), "vae/a/bias is int64, wanted one of float32"),
        ("unknown/bias", np.ones(1, np.float32), "unknown/bias belongs to no part"),
        ("vae/quant_conv/bias", np.ones(1, np.float32), "vae/quant_conv/bias comes twice"),
    ],
)
def test_bad_tensors_are_refused_by_name(tmp_path, config, params, name, array, reason):
    first = {"vae/quant_conv/bias": params["vae/quant_conv/bias"]}
    with pytest.raises(CheckpointError, match=reason):
        with BundleWriter(tmp_path / "b", config) as writer:
            writer.add("vae/quant_conv/bias", first["vae/quant_conv/bias"])
            writer.add(name, array)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_nothing(tmp_path, config, params, error):
    with pytest.raises(error):
        with BundleWriter(tmp_path / "b", config, shard_bytes=1) as writer:
            for name, array in list(params.items())[:5]:
                writer.add(name, array)
            raise error
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bundle_is_kept_unless_overwritten(bundle, config, params, shapes):
    before = snapshot(bundle)
    with pytest.raises(CheckpointError, match="already exists"):
        write(bundle, config, params)
    with pytest.raises(KeyboardInterrupt):
        with BundleWriter(bundle, config, overwrite=True) as writer:
            writer.add("vae/quant_conv/bias", params["vae/quant_conv/bias"])
            raise KeyboardInterrupt
    assert snapshot(bundle) == before
    other = {name: array + 1 for name, array in params.items()}
    write(bundle, config, other, overwrite=True)
    assert_same(load_bundle(bundle, expected=shapes)[1], other)
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_a_failing_swap_keeps_the_old_bundle(bundle, config, params, monkeypatch):
    before, rename = snapshot(bundle), os.rename

    def failing(source, target):
        if str(source).endswith(".partial"):
            raise OSError("disk on fire")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="on fire"):
        write(bundle, config, {"vae/quant_conv/bias": np.ones(8, np.float32)}, overwrite=True)
    assert snapshot(bundle) == before
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_only_bundles_are_overwritten(tmp_path, config, params):
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="is no bundle; remove it yourself"):
        write(home, config, params, overwrite=True)
    assert (home / "thesis.txt").exists() and list(tmp_path.iterdir()) == [home]


def test_a_changed_byte_is_found_by_its_hash(bundle, shapes):
    path = bundle / "vae.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    load_bundle(bundle, expected=shapes)
    message = failure(bundle, shapes, verify="hash")
    assert "vae.safetensors has another SHA-256" in message
    assert any("vae.safetensors" in line for line in describe(bundle).problems)


def test_missing_and_truncated_files_are_all_named(bundle, shapes):
    (bundle / "vae.safetensors").unlink()
    unet = bundle / "unet.safetensors"
    unet.write_bytes(unet.read_bytes()[:-4])
    message = failure(bundle, shapes)
    assert "vae.safetensors is missing" in message and "unet.safetensors has" in message
    assert len(describe(bundle, expected=shapes).problems) == 2


def test_a_file_of_the_same_size_with_other_tensors_is_found(bundle, shapes):
    path = bundle / "vae.safetensors"
    path.write_bytes(path.read_bytes().replace(b"vae/quant_conv/bias", b"vae/quant_bonv/bias"))
    message = failure(bundle, shapes)
    assert "vae/quant_conv/bias in vae.safetensors is absent, wanted float32 (8,)" in message


def test_parameters_that_do_not_fit_the_model_are_listed(tmp_path, config, params, shapes):
    wrong = dict(params)
    wrong["vae/quant_conv/bias"] = np.ones(9, np.float32)
    wrong["vae/extra/bias"] = np.ones(1, np.float32)
    del wrong["unet/out.2/bias"]
    write(tmp_path / "b", config, wrong)
    message = failure(tmp_path / "b", shapes)
    assert "1 missing: unet/out.2/bias" in message and "1 unused: vae/extra/bias" in message
    assert "vae/quant_conv/bias is (9,), wanted (8,)" in message
    assert len(describe(tmp_path / "b", expected=shapes).problems) == 3


def test_damaged_and_newer_descriptions_are_named(bundle, shapes):
    assert "config.json is missing" in failure(bundle.parent, shapes)
    content = json.loads((bundle / "manifest.json").read_text())
    for change, reason in (
        ({"format_version": 2}, "format 2, this program reads 1"),
        ({"files": {"../x.safetensors": {}}}, "../x.safetensors lies outside the bundle"),
        ({"files": {"x.safetensors": {"bytes": 1}}}, "x.safetensors is damaged"),
        ({"files": []}, "files is list"),
    ):
        (bundle / "manifest.json").write_text(json.dumps(content | change))
        assert reason in failure(bundle, shapes)
    (bundle / "manifest.json").write_text("{")
    assert "manifest.json is damaged" in failure(bundle, shapes)
    (bundle / "config.json").write_text(json.dumps({"format_version": 1, "model": {"unit": {}}}))
    assert "did you mean unet" in failure(bundle, shapes)


def test_describe_counts_every_part(whole, shapes, params, config):
    description = describe(whole, expected=shapes)
    assert description.kind == "bundle" and description.config == config
    assert description.problems == [] and description.verified
    assert {part.name for part in description.parts} == set(PARTS)
    for part in description.parts:
        own = {name: array for name, array in params.items() if part_of(name) == part.name}
        assert part.tensors == len(own) and part.files == [f"{part.name}.safetensors"]
        assert part.parameters == sum(array.size for array in own.values())
        assert part.bytes == 4 * part.parameters and part.dtypes == ["float32"]
