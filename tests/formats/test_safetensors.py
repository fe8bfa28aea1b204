"""safetensors files: read as the `safetensors` package reads them; a header that cannot be trusted is refused."""

import json
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_gguf.formats.errors import CheckpointError, MoeGgufError
from moe_gguf.formats.safetensors import LONGEST_HEADER, SafetensorsFile, pack_header, stored_bytes
from moe_gguf.formats.source import TensorInfo
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..refusal import refusal

SHAPES = {"embed": (7, 16), "norm": (16,), "scalar": (), "experts": (3, 4, 8), "nothing": (0, 16)}


def read_all(file: SafetensorsFile, name: str) -> np.ndarray:
    info = file.tensors[name]
    return file.read_rows(name, 0, info.n_rows).reshape(info.shape)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint8"])
def test_tensors_are_those_that_the_package_reads(dtype: str, tmp_path: Path) -> None:
    numbers = np.random.default_rng(2)
    arrays = {name: np.asarray(100 * numbers.standard_normal(shape)).astype(dtype) for name, shape in SHAPES.items()}
    path = tmp_path / "x.safetensors"
    save_file(arrays, path, metadata={"format": "pt"})
    ours = SafetensorsFile(path)
    assert set(ours.tensors) == set(arrays)
    with safe_open(path, "numpy") as theirs:
        for name in theirs.keys():  # noqa: SIM118
            read = read_all(ours, name)
            assert (read == theirs.get_tensor(name)).all() and read.dtype == dtype
            assert read.shape == arrays[name].shape
    assert (ours.read_rows("embed", 2, 5) == arrays["embed"][2:5]).all()
    assert (ours.read_rows("experts", 5, 9) == arrays["experts"].reshape(12, 8)[5:9]).all()
    assert ours.read_rows("embed", 3, 3).shape == (0, 16)


def test_bf16_comes_as_its_bits(tmp_path: Path) -> None:
    bits = np.random.default_rng(3).integers(0, 2**16, (5, 8), np.uint16)
    path = raw(tmp_path / "x.safetensors", {"x": entry("BF16", [5, 8], [0, 80])}, bits.tobytes())
    with safe_open(path, "numpy") as theirs:
        assert theirs.get_slice("x").get_dtype() == "BF16"
    file = SafetensorsFile(path)
    assert file.tensors["x"].dtype == "BF16" and (file.read_rows("x", 0, 5) == bits).all()
    assert file.tensors["x"].where == f"x.safetensors at byte {path.stat().st_size - bits.nbytes}"


def test_a_packed_header_is_read_by_the_package(tmp_path: Path) -> None:
    infos = [
        TensorInfo("ä/b", "F32", (2, 3), ""),
        TensorInfo("none", "F16", (0,), ""),
        TensorInfo("c", "F16", (5,), ""),
    ]
    path = tmp_path / "x.safetensors"
    header = pack_header(infos)
    path.write_bytes(header + bytes(sum(stored_bytes(info) for info in infos)))
    assert len(header) % 8 == 0
    with safe_open(path, "numpy") as theirs:
        assert {name: theirs.get_slice(name).get_shape() for name in theirs.keys()} == {  # noqa: SIM118
            info.name: list(info.shape) for info in infos
        }
    assert {name: info.shape for name, info in SafetensorsFile(path).tensors.items()} == {
        info.name: info.shape for info in infos
    }


def raw(path: Path, header: Any, data: bytes = bytes(64), length: int | None = None) -> Path:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(encoded) if length is None else length).to_bytes(8, "little") + encoded + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (16,), offsets: Any = (0, 64)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def two(first: tuple[int, int], second: tuple[int, int]) -> dict[str, Any]:
    return {name: entry("U8", [end - begin], [begin, end]) for name, (begin, end) in {"a": first, "b": second}.items()}


HALVES = json.dumps({"a": entry("U8", [32], [0, 32])})[:-1] + ", " + json.dumps({"a": entry("U8", [32], [32, 64])})[1:]
HOSTILE: dict[str, tuple[Any, str]] = {
    "an array": ([], "not a JSON object"),
    "no JSON": (b"{'a': 1}", "not valid JSON"),
    "no UTF-8": (b'{"\xff": 1}', "not valid JSON"),
    "nothing": (b"", "not valid JSON"),
    "deep arrays": (b"[" * 100_000, "not valid JSON: nested too deeply"),
    "deep objects": (b'{"a":' * 100_000, "not valid JSON: nested too deeply"),
    "a number of 5000 digits": (b'{"a":' + b"9" * 5000 + b"}", "not valid JSON"),
    "keys that are no text": (b"{1: 2}", "not valid JSON"),
    "a name twice": (HALVES.encode(), "'a' is there twice"),
    "an entry that is a list": ({"a": [1, 2]}, "'a' lacks"),
    "an entry that is null": ({"a": None}, "'a' lacks"),
    "no offsets": ({"a": {"dtype": "F32", "shape": [16]}}, "'a' lacks"),
    "one offset": ({"a": entry(offsets=[0])}, "'a' lacks"),
    "offsets in words": ({"a": entry(offsets="ab")}, "'a' lacks"),
    "fractions": ({"a": entry(shape=[16.0])}, "'a' lacks"),
    "booleans": ({"a": entry(shape=[16, True])}, "'a' lacks"),
    "a shape of text": ({"a": entry(shape="", offsets=[0, 4])}, "'a' lacks"),
    "a negative dimension": ({"a": entry(shape=[-16])}, "'a' lacks"),
    "nine dimensions": ({"a": entry(shape=[1] * 8 + [16])}, "'a' lacks"),
    "a dtype that is a number": ({"a": entry(dtype=32)}, "'a' lacks"),
    "a dtype that is unknown": ({"a": entry(dtype="F4")}, "unsupported dtype 'F4'"),
    "a product beyond 64 bits": ({"a": entry(shape=[2**32, 2**32])}, "needs"),
    "a product that wraps to 0": ({"a": entry(shape=[2**61, 8], offsets=[0, 0])}, "needs"),
    "fewer bytes than the shape": ({"a": entry(offsets=[0, 60])}, "needs 64 bytes"),
    "an end before the begin": ({"a": entry(shape=[0], offsets=[64, 0])}, "needs 0 bytes"),
    "beyond the end": ({"a": entry(shape=[32], offsets=[0, 128])}, "truncated"),
    "an overlap": (two((0, 40), (32, 64)), "'b' overlaps 'a'"),
    "the same place": (two((0, 64), (0, 64)), "'b' overlaps 'a'"),
    "a hole": (two((0, 24), (32, 64)), "'b' leaves a hole after 'a'"),
    "a hole at the begin": ({"a": entry("U8", [60], [4, 64])}, "leaves a hole after the header"),
    "bytes of nobody": ({"a": entry("U8", [60], [0, 60])}, "4 bytes after 'a' belong to no tensor"),
    "no tensors": ({}, "64 bytes after the header"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused_as_by_the_package(name: str, tmp_path: Path) -> None:
    header, words = HOSTILE[name]
    path = raw(tmp_path / "hostile.safetensors", header)
    line = refusal(path, SafetensorsFile)
    assert words in line and str(path) in line
    # The package reads more dimensions than any weight has.
    if name != "nine dimensions":
        with pytest.raises((SafetensorError, RecursionError)), safe_open(path, "numpy"):
            pass


@pytest.mark.parametrize("length", [67, 2**31, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file_is_refused_at_once(length: int, tmp_path: Path) -> None:
    path = raw(tmp_path / "x.safetensors", b"{}", length=length)
    assert f"a header of {length} bytes in 74 bytes" in refusal(path, SafetensorsFile)


def test_a_header_of_2_gb_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = raw(tmp_path / "x.safetensors", b"{", length=2**31)
    with path.open("r+b") as file:
        file.truncate(2**33)
    assert f"more than {LONGEST_HEADER} is refused" in refusal(path, SafetensorsFile)


def test_a_late_repetition_among_many_names_is_found_at_once(tmp_path: Path) -> None:
    names = [f'"{i}":0' for i in range(200_000)]
    path = raw(tmp_path / "x.safetensors", ("{" + ",".join([*names, '"199999":0']) + "}").encode())
    with pytest.raises(CheckpointError, match="'199999' is there twice"):
        SafetensorsFile(path)


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"\x08\0\0")
    assert "truncated or not a safetensors file" in refusal(tmp_path / "short", SafetensorsFile)
    assert "no such file" in refusal(tmp_path / "none", SafetensorsFile)


VALID = {"a": entry("F16", [4, 4], [0, 32]), "b": entry("F32", [8], [32, 64]), "__metadata__": {"format": "pt"}}


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), n=st.integers(1, 4))
def test_damaged_bytes_are_read_or_refused(seed: int, n: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = raw(tmp_path_factory.getbasetemp() / "damaged.safetensors", VALID)
    content, dice = bytearray(path.read_bytes()), random.Random(seed)
    for _ in range(n):
        content[dice.randrange(len(content) - 64)] = dice.choice(b'0123456789"[]{},:.eE-\\u \xff' + bytes(range(32)))
    path.write_bytes(content)
    if not refusal(path, SafetensorsFile):
        with safe_open(path, "numpy") as theirs:
            assert set(theirs.keys()) == set(SafetensorsFile(path).tensors)


def test_threads_share_one_open_file(tmp_path: Path) -> None:
    arrays = {"x": np.arange(4096, dtype=np.float32).reshape(64, 64)}
    save_file(arrays, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    wrong: list[int] = []

    def read(start: int) -> None:
        for row in range(start, 64, 8):
            if not (file.read_rows("x", row, row + 1) == arrays["x"][row]).all():
                wrong.append(row)

    threads = [threading.Thread(target=read, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_file_that_became_shorter_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": np.zeros((8, 8), np.float32)}, path)
    file = SafetensorsFile(path)
    with path.open("r+b") as handle:
        handle.truncate(path.stat().st_size - 4)
    with pytest.raises(MoeGgufError, match=r"x\.safetensors: ends at byte .* is it whole\?"):
        file.read_rows("x", 7, 8)


def test_the_identity_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": np.zeros((8, 8), np.float32)}, path)
    before = SafetensorsFile(path).identity()
    assert list(before) == [str(path)] and before == SafetensorsFile(path).identity()
    save_file({"y": np.zeros((8, 8), np.float32)}, path)
    assert SafetensorsFile(path).identity() != before
