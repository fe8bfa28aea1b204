"""PyTorch's files, as PyTorch wrote them, read without it; hostile and unusual ones refused before anything is run."""

import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from moe_gguf.formats.safetensors import SafetensorsFile
from moe_gguf.formats.torch_file import TorchFile

from ..refusal import refusal

GOLDEN = Path(__file__).parent / "golden"
VALUES = SafetensorsFile(GOLDEN / "torch.safetensors")


@pytest.mark.parametrize("kind", ["zip", "parameters", "protocol4"])
def test_tensors_are_what_torch_saved(kind: str) -> None:
    file = TorchFile(GOLDEN / f"torch_{kind}.bin")
    assert set(file.tensors) <= set(VALUES.tensors) and len(file.tensors) >= 5
    for name, info in file.tensors.items():
        assert (info.dtype, info.shape) == (VALUES.tensors[name].dtype, VALUES.tensors[name].shape)
        expected = VALUES.read_rows(name, 0, info.n_rows)
        for start, stop in ((0, info.n_rows), (info.n_rows // 2, info.n_rows), (0, info.n_rows // 2)):
            rows = file.read_rows(name, start, stop)
            assert rows.tobytes() == expected[start:stop].tobytes()


def test_a_state_dict_with_attributes_is_read() -> None:
    file = TorchFile(GOLDEN / "torch_state_dict.bin")
    assert {name: info.shape for name, info in file.tensors.items()} == {"weight": (3, 4), "bias": (3,)}
    assert (file.read_rows("bias", 0, 1) == 1).all()
    assert list(file.identity()) == [str(GOLDEN / "torch_state_dict.bin")]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("torch_old.bin", "PyTorch's format of before 2020; convert it with: python -c \"import torch; f = '"),
        ("torch_transposed.bin", "strides [1, 5]"),
        ("torch_training.bin", "'model' is no tensor"),
        ("torch_module.bin", "asks for torch.nn.modules.linear.Linear, which is no part of a tensor"),
        ("torch.safetensors", "not a PyTorch checkpoint"),
    ],
)
def test_what_is_no_dict_of_tensors_is_called_what_it_is(name: str, words: str) -> None:
    assert words in refusal(GOLDEN / name, TorchFile)


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.what = function, arguments

    def __reduce__(self) -> Any:
        return self.what


def archive(path: Path, data: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/data/0", bytes(16))
    return path


HARM = Path("harm")
TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
    b"X\x03\x00\x00\x00cpuK"
)
HOSTILE = {
    "a shell": (pickle.dumps({"a": Call(os.system, "touch harm")}, 2), "system, which is no part of a tensor"),
    "code": (pickle.dumps(Call(eval, "open('harm', 'w')"), 2), "eval, which is no part of a tensor"),
    "a global of protocol 4": (pickle.dumps(Call(exec, "open('harm', 'w')"), 4), "exec, which is no part of a tensor"),
    "an attribute": (pickle.dumps({"a": Call(getattr, OrderedDict, "__class__")}, 2), "getattr, which is no part"),
    "an old instance": (b"(S'touch harm'\nios\nsystem\n.", "STRING"),
    "an object": (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
    "an extension": (b"\x80\x02\x82\x01.", "EXT1"),
    "a call of a call": (b"\x80\x02})R.", "calls what is no function"),
    "attributes of a name": (b"\x80\x02ccollections\nOrderedDict\n}b.", "gives attributes to what is no dict"),
    "a list": (b"\x80\x02].", "not a dict of tensors"),
    "nothing": (b"", "broken pickle"),
    "no end": (b"\x80\x02}", "broken pickle"),
    "a mark missing": (b"\x80\x02u.", "broken pickle"),
    "an empty stack": (b"\x80\x02.", "broken pickle"),
    "a memo that is not there": (b"\x80\x02h\x05.", "broken pickle"),
    "no keys": (b"\x80\x02}]]s.", "broken pickle"),
    "a length beyond the end": (b"\x80\x02X\xff\xff\xff\x7fa.", "broken pickle"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_and_nothing_is_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data, words = HOSTILE[name]
    line = refusal(archive(tmp_path / "pytorch_model.bin", data), TorchFile)
    assert words in line and str(tmp_path) in line
    assert not HARM.exists()


def one_tensor(n_values: bytes, offset: bytes, shape: bytes, strides: bytes) -> bytes:
    name = b"\x80\x02}X\x01\x00\x00\x00a"
    return name + TENSOR + n_values + b"tQK" + offset + b"K" + shape + b"\x85K" + strides + b"\x85\x89}tRs."


def test_tensors_beyond_their_data_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    assert TorchFile(archive(path, one_tensor(b"\4", b"\0", b"\4", b"\1"))).tensors["a"].shape == (4,)
    assert "ends at byte 20" in refusal(archive(path, one_tensor(b"\5", b"\0", b"\5", b"\1")), TorchFile)
    assert "ends at byte 20" in refusal(archive(path, one_tensor(b"\4", b"\1", b"\4", b"\1")), TorchFile)
    assert "strides [0]" in refusal(archive(path, one_tensor(b"\4", b"\0", b"\4", b"\0")), TorchFile)
    packed = archive(path, one_tensor(b"\4", b"\0", b"\4", b"\1"), zipfile.ZIP_DEFLATED)
    assert "compressed" in refusal(packed, TorchFile)


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    whole = (GOLDEN / "torch_zip.bin").read_bytes()
    path = tmp_path / "pytorch_model.bin"
    for size in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert str(path) in refusal(path, TorchFile)


def test_bytes_changed_anywhere_are_read_or_refused(tmp_path: Path) -> None:
    whole = (GOLDEN / "torch_state_dict.bin").read_bytes()
    path, draw = tmp_path / "pytorch_model.bin", np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(whole)
        changed[int(draw.integers(len(whole)))] = int(draw.integers(256))
        path.write_bytes(changed)
        refusal(path, TorchFile)
