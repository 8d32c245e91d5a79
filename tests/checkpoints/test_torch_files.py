"""Reading never runs code, keeps every bit, and says in one line what is wrong."""

import collections
import os
import sys
import types

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from stylecrafter_jax.checkpoints.torch_files import CheckpointError, read_tensors, write_torch

torch = pytest.importorskip("torch", reason="PyTorch's files need PyTorch")

TENSORS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
    "b.half": np.array([0.1, -2.5], np.float16),
    "b.brain": np.array([[0.1], [3.0]], ml_dtypes.bfloat16),
    "c.scale": np.array(1.5, ml_dtypes.bfloat16),
    "c.steps": np.array(3, np.int64),
    "d.none": np.zeros((0, 4), np.float32),
}


def assert_same(got, wanted):
    assert list(got) == list(wanted)
    for name, array in wanted.items():
        assert got[name].dtype == array.dtype and got[name].shape == array.shape, name
        assert got[name].tobytes() == array.tobytes(), name


def reason(path):
    with pytest.raises(CheckpointError) as error:
        read_tensors(path)
    message = str(error.value)
    assert str(path) in message and "\n" not in message
    return message


class Payload:
    """An object that runs a shell command when a careless reader unpickles it."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("suffix", [".ckpt", ".pth", ".pt", ".bin"])
def test_every_bit_survives_a_round_trip(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    write_torch(path, TENSORS)
    assert_same(read_tensors(path), TENSORS)
    assert list(tmp_path.iterdir()) == [path]


def test_pytorch_reads_what_is_written(tmp_path):
    write_torch(tmp_path / "x.pth", {"norm": {"weight": TENSORS["a.weight"]}, **TENSORS})
    loaded = torch.load(tmp_path / "x.pth", weights_only=True)
    assert torch.equal(loaded["norm"]["weight"], torch.arange(6).reshape(2, 3) / 7)
    assert loaded["b.brain"].dtype == torch.bfloat16 and loaded["c.scale"].shape == ()
    assert loaded["c.scale"].item() == 1.5


def test_safetensors_are_read_without_pytorch(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path)
    monkeypatch.setitem(sys.modules, "torch", None)
    got = read_tensors(path)
    assert_same({name: got[name] for name in TENSORS}, TENSORS)
    assert not got["a.weight"].flags.writeable


def test_missing_pytorch_is_named(tmp_path, monkeypatch):
    write_torch(tmp_path / "x.pt", TENSORS)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(CheckpointError, match=r"pip install stylecrafter_jax\[torch\]"):
        read_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_state_dict_is_unwrapped_and_modules_are_flattened(tmp_path, zipped):
    path = tmp_path / "x.ckpt"
    rows = collections.OrderedDict(weight=torch.ones(2), bias=torch.zeros(2))
    content = {"state_dict": {"block.1": rows, "top": torch.nn.Parameter(torch.ones(()))}}
    content |= {"epoch": 3, "optimizer_states": [{"lr": 0.1}]}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert list(read_tensors(path)) == ["block.1.weight", "block.1.bias", "top"]


def test_objects_of_lightning_beside_the_weights_are_passed_over(tmp_path, monkeypatch):
    name = "pytorch_lightning.callbacks"
    module = types.ModuleType(name)
    module.Callback = type("Callback", (), {"__module__": name})
    monkeypatch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
    monkeypatch.setitem(sys.modules, name, module)
    callback = module.Callback()
    callback.best = np.float64(0.5)
    content = {"state_dict": {"a": torch.ones(2)}, "callbacks": {module.Callback: callback}}
    torch.save(content, tmp_path / "x.ckpt")
    monkeypatch.delitem(sys.modules, name)
    assert list(read_tensors(tmp_path / "x.ckpt")) == ["a"]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("function", [os.system, eval, exec], ids=lambda f: f.__name__)
def test_malicious_pickles_are_refused_and_not_run(tmp_path, function, zipped):
    path, trace = tmp_path / "x.ckpt", tmp_path / "trace"
    code = f"touch {trace}" if function is os.system else f"open({str(trace)!r}, 'w').close()"
    content = {"state_dict": {"a": torch.ones(2)}, "callbacks": Payload(function, code)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    message = reason(path)
    assert function.__name__ in message and "refused" in message
    assert not trace.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_files_are_refused_at_any_length(tmp_path, zipped):
    path = tmp_path / "x.ckpt"
    torch.save(
        {"a": torch.ones(64), "b": torch.ones(3)}, path, _use_new_zipfile_serialization=zipped
    )
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, max(1, len(whole) // 40)):
        path.write_bytes(whole[:length])
        reason(path)


def test_truncated_safetensors_are_refused_at_any_length(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": np.ones(64, np.float32)}, path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        reason(path)


def test_what_is_no_checkpoint_is_named(tmp_path):
    (tmp_path / "text.pt").write_text("hello world")
    reason(tmp_path / "text.pt")
    (tmp_path / "text.safetensors").write_text("hello world")
    reason(tmp_path / "text.safetensors")
    assert "no such file" in reason(tmp_path / "absent.pt")
    (tmp_path / "x.zip").write_text("")
    assert ".safetensors" in reason(tmp_path / "x.zip")
    for content, wanted in (
        ({}, "no tensors"),
        ({"state_dict": {}}, "no tensors"),
        ([torch.ones(1)], "got list"),
        (torch.ones(1), "got Tensor"),
        ({"a": torch.ones(1), "b": 3}, "b is int"),
        ({"m": {"a": "text"}}, "m.a is str"),
        ({"s": torch.ones(2, 2).to_sparse()}, "sparse"),
        ({"q": torch.ones(2).to(torch.float8_e4m3fn)}, "float8_e4m3fn"),
    ):
        torch.save(content, tmp_path / "x.pt")
        assert wanted in reason(tmp_path / "x.pt")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch, error):
    path = tmp_path / "x.pth"
    write_torch(path, TENSORS)
    before = path.read_bytes()

    def save(content, file):
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(error):
        write_torch(path, {"a": np.ones(2, np.float32)})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
