"""Training checkpoints (Orbax) with damage in any of their files."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from stylecrafter_jax.checkpoints.store import Store
from stylecrafter_jax.checkpoints.torch_files import CheckpointError
from tests.fuzz.laws import LONG, read_or_refused

STATE = {"step": jnp.int32(3), "w": jnp.arange(24.0).reshape(4, 6), "b": jnp.ones(3, jnp.bfloat16)}
DATA = {"step": 3, "identity": {"seed": 0}, "ledger": {"read": {}, "refused": {}, "faults": {}}}
DAMAGE = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
    "ones": lambda data: b"\xff" * len(data),
    "first": lambda data: b"\x80" + data[1:],
    "middle": lambda data: data[: len(data) // 2] + b"\x80\x81" + data[len(data) // 2 + 2 :],
    "nested": lambda data: b"[" * 100_000,
    "other": lambda data: b'{"a": [1, {"b": null}]}',
    "absent": None,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "checkpoints"
    store = Store(path)
    store.save(3, STATE, DATA, 0.5)
    store.close()
    return path


def restore(path):
    store = Store(path)
    try:
        return store.restore(STATE)
    finally:
        store.close()


def files(path):
    return sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file())


@pytest.mark.parametrize("way", DAMAGE if LONG else ["half", "ones", "absent"])
def test_damaged_checkpoints(saved, tmp_path, way):
    assert len(files(saved)) > 5
    refused = 0
    for name in files(saved):
        path = tmp_path / "checkpoints"
        shutil.copytree(saved, path)
        file = path / name
        if DAMAGE[way] is None:
            file.unlink()
        else:
            file.write_bytes(DAMAGE[way](file.read_bytes()))
        found, message = read_or_refused(
            lambda path=path: restore(path), CheckpointError, name=str(path), megabytes=2048
        )
        if found is None:
            refused += 1
        else:
            np.testing.assert_array_equal(found.state["w"], STATE["w"], err_msg=str(name))
            assert isinstance(found.data, dict), (name, message)
        shutil.rmtree(path)
    assert refused > 0
