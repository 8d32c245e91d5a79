"""Checkpoint files with damage, lies and pickles that want to run something."""

import io
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from stylecrafter_jax.checkpoints.bundle import load_bundle, read_config, read_manifest
from stylecrafter_jax.checkpoints.torch_files import CheckpointError, read_tensors
from stylecrafter_jax.models.networks import parameter_shapes
from tests.fuzz.laws import LONG, bytes_like, fuzzed, nothing_left, read_or_refused
from tests.fuzz.values import JSON

TENSORS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "a.bias": np.ones(3, np.float16),
    "step": np.array(7, np.int64),
    "empty": np.zeros((0, 3), np.float32),
}
SAFETENSORS = save(TENSORS)


def torch_bytes(zipped: bool) -> bytes:
    torch = pytest.importorskip("torch", reason="PyTorch's files need PyTorch")
    file = io.BytesIO()
    content = {"state_dict": {name: torch.from_numpy(x.copy()) for name, x in TENSORS.items()}}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def check(folder, name: str, data: bytes) -> str | None:
    """Reads the bytes as a file of this name; returns why they were refused."""
    path = folder / name
    path.write_bytes(data)
    with nothing_left(folder):
        found, message = read_or_refused(lambda: read_tensors(path), CheckpointError, name=name)
    if found is not None:
        for key, array in found.items():
            assert isinstance(key, str) and isinstance(array, np.ndarray)
            array.tobytes()  # a tensor that lies outside of its file would end the process here
    return message


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_damaged_files_of_pytorch(folder, zipped):
    @fuzzed(100)
    @given(bytes_like(torch_bytes(zipped)))
    def law(data):
        check(folder, "x.ckpt", data)

    law()


@fuzzed(150)
@given(bytes_like(SAFETENSORS))
def test_damaged_safetensors(tmp_path_factory, data):
    check(tmp_path_factory.getbasetemp(), "x.safetensors", data)


DIMENSION = st.integers(-2, 5) | st.sampled_from([2**31, 2**32, 2**62, 2**63, 2**64])
TENSOR = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "I64", "BOOL", "F8_E5M2", "U16", "f32"]) | JSON,
        "shape": st.lists(DIMENSION, max_size=4) | JSON,
        "data_offsets": st.lists(DIMENSION, min_size=2, max_size=2) | JSON,
    }
)


@fuzzed(150)
@given(
    st.dictionaries(st.sampled_from(["a", "b", "__metadata__", "ü\n"]), TENSOR | JSON, max_size=3),
    st.integers(0, 40),
)
def test_headers_of_safetensors_that_lie(tmp_path_factory, header, size):
    text = json.dumps(header).encode()
    data = struct.pack("<Q", len(text)) + text + bytes(size)
    check(tmp_path_factory.getbasetemp(), "y.safetensors", data)


def test_damaged_bundles(small_bundle, tmp_path):
    names = ("config.json", "manifest.json")
    wholes = {name: (small_bundle / name).read_bytes() for name in names}
    for file in small_bundle.iterdir():
        if file.is_file() and file.name not in names:
            (tmp_path / file.name).symlink_to(file)

    @fuzzed(60, long=3000)
    @given(st.data(), st.sampled_from(names))
    def law(data, name):
        for one in names:
            (tmp_path / one).write_bytes(wholes[one])
        content = data.draw(bytes_like(wholes[name]) | JSON.map(lambda v: json.dumps(v).encode()))
        (tmp_path / name).write_bytes(content)
        with nothing_left(tmp_path):
            for read in (read_config, read_manifest):
                read_or_refused(
                    lambda read=read: read(tmp_path), CheckpointError, name=str(tmp_path)
                )
            if LONG:
                read_or_refused(
                    lambda: load_bundle(tmp_path, expected=parameter_shapes),
                    CheckpointError,
                    name=str(tmp_path),
                )

    law()
