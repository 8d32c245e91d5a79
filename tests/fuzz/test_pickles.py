"""Pickles that want to run something, and state dicts that want to never end."""

import builtins
import importlib
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from stylecrafter_jax.checkpoints.torch_files import CheckpointError, read_tensors
from tests.fuzz.laws import nothing_left, read_or_refused

torch = pytest.importorskip("torch", reason="PyTorch's files need PyTorch")


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *args):
        self.reduced = (function, args)

    def __reduce__(self):
        return self.reduced


def refusal(folder: Path, data: bytes) -> str:
    path = folder / "x.ckpt"
    path.write_bytes(data)
    with nothing_left(folder):
        found, message = read_or_refused(
            lambda: read_tensors(path), CheckpointError, name=path.name, megabytes=512
        )
    assert found is None and message is not None
    return message


def saved(content, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def with_pickle(code: bytes, compress: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of PyTorch with this pickle."""
    with zipfile.ZipFile(io.BytesIO(saved({"a": torch.ones(2)}))) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compress) as archive:
        for name, content in members.items():
            archive.writestr(name, code if name.endswith("data.pkl") else content)
    return file.getvalue()


def touch(trace: Path) -> str:
    return f"open({str(trace)!r}, 'w').close()"


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["value", "key", "beside", "nested", "state"])
@pytest.mark.parametrize(
    "function", [os.system, builtins.eval, builtins.exec, importlib.import_module]
)
def test_no_function_is_called_wherever_it_stands(tmp_path, zipped, place, function):
    trace = tmp_path.parent / f"{tmp_path.name}-trace"
    code = f"touch {trace}" if function is os.system else touch(trace)
    bomb = Call(function, code)
    content = {
        "value": {"a": bomb},
        "key": {"a": torch.ones(1), bomb: 1},
        "beside": {"state_dict": {"a": torch.ones(1)}, "epoch": bomb},
        "nested": {"a": {"b": [{"c": (bomb,)}]}},
        "state": {"a": Call(np._core.multiarray._reconstruct, bomb, (0,), b"b")},
    }[place]
    assert "refused" in refusal(tmp_path, saved(content, zipped))
    assert not trace.exists()


def opcodes(module: str, name: str, argument: str) -> dict[str, bytes]:
    """The same call in the opcodes of several protocols, as no pickler would write it."""
    text = argument.encode()
    short = b"\x8c" + bytes([len(text)]) + text
    named = b"".join(b"\x8c" + bytes([len(s)]) + s.encode() for s in (module, name))
    return {
        "GLOBAL": f"\x80\x02c{module}\n{name}\n".encode("latin-1") + b"(" + short + b"tR.",
        "STACK_GLOBAL": b"\x80\x04" + named + b"\x93(" + short + b"tR.",
        "INST": b"\x80\x02(" + short + f"i{module}\n{name}\n.".encode(),
        "OBJ": b"\x80\x02(" + f"c{module}\n{name}\n".encode() + short + b"o.",
        "NEWOBJ": f"\x80\x02c{module}\n{name}\n".encode("latin-1") + b"(" + short + b"t\x81.",
        "EXT1": b"\x80\x02\x82\x01(" + short + b"tR.",
    }


DODGES = [
    ("os", "system"),
    ("posix", "system"),
    ("builtins", "eval"),
    ("__builtin__", "eval"),
    ("torch", "hub.os.system"),  # a dotted name below a package that is allowed to name things
    ("torch._utils", "os.system"),
    ("torch.serialization", "os.system"),
    ("numpy.testing._private.utils", "os.system"),
    ("omegaconf.os", "system"),
    ("lightning", "os.system"),
    ("collections", "namedtuple"),
    ("collections.abc", "sys.modules"),
]


@pytest.mark.parametrize("form", opcodes("", "", ""))
def test_no_opcode_reaches_a_function(tmp_path, form):
    trace = tmp_path.parent / f"{tmp_path.name}-trace"
    for module, name in DODGES:
        argument = touch(trace) if name == "eval" else f"touch {trace}"
        code = opcodes(module, name, argument)[form]
        refusal(tmp_path, with_pickle(code))
        # The old format: magic number, protocol, system, then the object.
        head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {})]
        refusal(tmp_path, b"".join(head) + code)
        assert not trace.exists(), (module, name)


def test_a_storage_or_persistent_id_runs_nothing(tmp_path):
    trace = tmp_path.parent / f"{tmp_path.name}-trace"
    bomb = (
        b"cos\nsystem\n(\x8c" + bytes([len(f"touch {trace}")]) + f"touch {trace}".encode() + b"tR"
    )
    for code in (
        b"\x80\x02" + bomb + b"Q.",  # the id itself
        b"\x80\x02(X\x07\x00\x00\x00storage"
        + bomb
        + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQ.",
        b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        + bomb
        + b"X\x03\x00\x00\x00cpuK\x02tQ.",
        b"\x80\x02Ptext\n.",
    ):
        refusal(tmp_path, with_pickle(code))
    assert not trace.exists()


def test_a_pickle_that_unpacks_to_a_thousand_times_its_size_is_refused(tmp_path):
    size = 16 * 2**20
    data = with_pickle(b"\x80\x02B" + struct.pack("<I", size) + bytes(size), zipfile.ZIP_DEFLATED)
    assert len(data) < size // 500
    assert "which PyTorch never does; refused" in refusal(tmp_path, data)


def test_members_that_share_their_bytes_are_refused(tmp_path):
    # A thousand entries of the directory that name one member of a megabyte.
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", bytes(2**20))
        archive.filelist *= 1000
    assert "in a file of" in refusal(tmp_path, file.getvalue())


def endless():
    content = {}
    content["a"] = content
    return content


def doubling(levels: int):
    content = {"a": torch.ones(1), "b": torch.ones(1)}
    for _ in range(levels):
        content = {"a": content, "b": content}
    return content


def wide(tensor):
    """A state dict of seven levels with thirty branches that are all the same."""
    content = dict.fromkeys(map(str, range(30)), tensor)
    for _ in range(6):
        content = dict.fromkeys(map(str, range(30)), content)
    return content


def deep(levels: int) -> bytes:
    return with_pickle(b"\x80\x02" + b"}X\x01\x00\x00\x00a" * levels + b"}" + b"s" * levels + b".")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_state_dicts_that_never_end_are_refused(tmp_path, zipped):
    assert "deep" in refusal(tmp_path, saved(endless(), zipped))
    assert "deep" in refusal(tmp_path, saved(doubling(40), zipped))
    assert "never end" in refusal(tmp_path, saved(wide(torch.ones(1)), zipped))
    refusal(tmp_path, deep(100_000))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"a": torch.ones(1).expand(2**40)}, "more than the file holds"),
        ({"a": torch.empty(2**40, device="meta")}, "wanted a dense tensor"),
        ({"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)}, "a.b comes twice"),
        ({("a", 1): torch.ones(1)}, "a name in it is tuple"),
        ({"a": torch.ones(1, dtype=torch.complex64).conj()}, "no plain array"),
        ({"a\n\x1b[31mb": 3}, r"a \x1b[31mb is int"),
    ],
    ids=["expanded", "meta", "twice", "key", "conjugate", "control"],
)
def test_tensors_that_are_not_what_they_seem_are_refused(tmp_path, content, reason):
    assert reason in refusal(tmp_path, saved(content))


def test_a_legacy_file_that_claims_a_huge_storage_is_refused(tmp_path):
    data = saved({"a": torch.ones(3)}, zipped=False)
    count = b"K\x03"  # of the storage, in its persistent id, and of the tensor
    assert data.count(count) == 2
    refusal(tmp_path, data.replace(count, b"J" + struct.pack("<i", 2**31 - 1)))
