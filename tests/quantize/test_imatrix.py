"""Importance matrices: read as llama.cpp reads them, applied per expert, and every fault told."""

import random
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from moe_gguf.formats.errors import ImatrixError
from moe_gguf.formats.gguf_file import GgufFile, GgufTensor, read_gguf
from moe_gguf.quantize import ggml
from moe_gguf.quantize.imatrix import Imatrix, load_imatrix
from moe_gguf.quantize.overrides import KvOverride

from .oracle import quantize_file
from .tiny_files import (
    numbers,
    tiny_statistics,
    write_imatrix,
    write_legacy_imatrix,
    write_tiny,
    write_tiny_imatrices,
)

Q, K = "blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"


def load(folder: Path, sums: dict[str, np.ndarray], counts: dict[str, np.ndarray]) -> Imatrix:
    return load_imatrix(write_imatrix(folder / "imatrix.gguf", sums, counts))


def raw(file: GgufFile, tensor: GgufTensor) -> np.ndarray:
    """Return a tensor's bytes."""
    return np.fromfile(tensor.path, np.uint8, tensor.n_bytes, offset=tensor.offset)


def encode(file: GgufFile, tensor: GgufTensor, qtype: GGMLQuantizationType, imatrix: Imatrix) -> np.ndarray:
    """Encode an F32 tensor expert by expert with llama.cpp's encoder and our reading of the matrix."""
    row_length, n_rows = tensor.shape[:2]
    experts = raw(file, tensor).view(np.float32).reshape(-1, n_rows, row_length)
    importance = imatrix.for_tensor(tensor.name, tensor.shape)
    slices = [None] * len(experts) if importance is None else importance
    pairs = zip(experts, slices, strict=True)
    return np.concatenate([ggml.quantize_chunk(qtype, rows, values).reshape(-1) for rows, values in pairs])


@pytest.mark.parametrize(
    ("file_type", "format_name"),
    [
        ("Q4_K_M", "imatrix.gguf"),
        ("Q4_K_M", "imatrix.dat"),
        ("Q2_K", "imatrix.gguf"),
        ("IQ4_XS", "imatrix.gguf"),
        ("Q4_0", "imatrix.dat"),
    ],
)
def test_every_expert_is_encoded_with_its_own_slice(tmp_path: Path, format_name: str, file_type: str) -> None:
    """Byte for byte what llama.cpp's quantizer makes of the same matrix (test_oracle compares the reading itself)."""
    write_tiny(tmp_path / "f32.gguf")
    write_tiny_imatrices(tmp_path)
    imatrix = load_imatrix(tmp_path / format_name)
    quantize_file(tmp_path / "f32.gguf", tmp_path / "out.gguf", file_type, n_threads=1, imatrix=imatrix)
    source, written = read_gguf(tmp_path / "f32.gguf"), read_gguf(tmp_path / "out.gguf")
    changed = [tensor for tensor in written.tensors.values() if tensor.qtype != source.tensors[tensor.name].qtype]
    assert len(changed) == 23
    for tensor in changed:
        assert np.array_equal(encode(source, source.tensors[tensor.name], tensor.qtype, imatrix), raw(written, tensor))
    assert not imatrix.warnings or all("expert 3 of 4" in warning for warning in imatrix.warnings)


def test_experts_without_tokens_count_alike(tmp_path: Path) -> None:
    sums, counts = tiny_statistics()
    imatrix = load(tmp_path, sums, counts)
    slices = imatrix.for_tensor(K, (256, 256, 4))
    assert slices is not None
    assert slices.shape == (4, 256)
    assert slices.dtype == np.float32
    assert (slices[3] == 1).all()
    assert np.array_equal(slices[1], sums[K].astype(np.float32)[1] / np.float32(137))
    warning = f"{K}: expert 3 of 4 saw no calibration token; its weights count alike"
    assert any(warning in text for text in imatrix.warnings)


def test_a_single_count_serves_all_experts(tmp_path: Path) -> None:
    values = np.arange(1024, dtype=np.float32).reshape(4, 256)
    imatrix = load(tmp_path, {K: values}, {K: np.array([4])})
    slices = imatrix.for_tensor(K, (256, 8, 4))
    assert slices is not None
    assert np.array_equal(slices, values / 4)


@pytest.mark.parametrize(("count", "divisor"), [(2.4, 2), (2.5, 3), (0.5, 1), (0.49, None), (-3, None), (2**25, 2**25)])
def test_counts_are_rounded_as_by_lround(tmp_path: Path, count: float, divisor: float | None) -> None:
    imatrix = load(tmp_path, {Q: np.full(32, 6.0)}, {Q: np.array([count])})
    slices = imatrix.for_tensor(Q, (32, 5))
    assert slices is not None
    assert slices[0, 0] == (np.float32(6) / np.float32(divisor) if divisor else 1)
    assert bool(imatrix.warnings) == (divisor is None)


def test_values_that_are_not_finite_are_replaced_and_told(tmp_path: Path) -> None:
    values = np.ones((4, 32), np.float32) * 3
    values[1, 7], values[2, 0] = np.nan, np.inf
    imatrix = load(tmp_path, {K: values}, {K: np.ones(4)})
    slices = imatrix.for_tensor(K, (32, 8, 4))
    assert slices is not None
    assert [float(row[0]) for row in slices] == [3, 1, 1, 3]
    assert np.isfinite(slices).all()
    assert any("expert 1, 2 of 4 has values that are not finite" in warning for warning in imatrix.warnings)
    legacy = load_imatrix(write_legacy_imatrix(tmp_path / "old.dat", {Q: (2, np.array([1, np.nan]))}))
    assert legacy.values[Q].tolist() == [1, 1]
    assert "it has values that are not finite" in legacy.warnings[0]


def test_what_the_matrix_does_not_know(tmp_path: Path) -> None:
    imatrix = load(
        tmp_path, {Q: np.ones(32), "token_embd.weight": np.ones(3)}, {Q: np.ones(1), "token_embd.weight": np.ones(1)}
    )
    assert imatrix.names == {Q, "token_embd.weight"}
    assert imatrix.for_tensor(K, (32, 8, 4)) is None
    assert imatrix.for_tensor(K, (32, 8, 4)) is None
    assert imatrix.for_tensor("output.weight", (32, 8)) is None
    assert len(imatrix.warnings) == 1
    assert imatrix.for_tensor("token_embd.weight", (32, 8)) is None
    assert len(imatrix.warnings) == 2
    with pytest.raises(ImatrixError, match=r"32 values for blk\.0\.attn_q\.weight, which has 4 x 32"):
        imatrix.for_tensor(Q, (32, 8, 4))


def test_metadata_names_the_matrix(tmp_path: Path) -> None:
    sums, counts = {Q: np.ones(32)}, {Q: np.ones(1)}
    imatrix = load(tmp_path, sums, counts)
    assert imatrix.metadata_overrides()[1:] == [
        KvOverride("quantize.imatrix.dataset", "calibration.txt"),
        KvOverride("quantize.imatrix.entries_count", 1),
        KvOverride("quantize.imatrix.chunks_count", 7),
    ]
    bare = load_imatrix(write_legacy_imatrix(tmp_path / "bare.dat", {Q: (1, np.ones(32))}, trailer=None))
    assert [override.key[17:] for override in bare.metadata_overrides()] == ["file", "entries_count"]
    deep = tmp_path / ("ä" * 80)
    deep.mkdir()
    written = load(deep, sums, counts).metadata_overrides()[0].value
    assert isinstance(written, str)
    assert len(written.encode("utf-8", "surrogateescape")) == 127


def test_a_path_cut_within_a_letter_reaches_the_file(tmp_path: Path) -> None:
    """llama.cpp keeps 127 bytes of the path, letters or not."""
    deep = tmp_path / ("ä" * 80)
    deep.mkdir()
    imatrix = load(deep, {Q: np.ones(256)}, {Q: np.ones(1)})
    source = write_tiny(tmp_path / "f32.gguf")
    quantize_file(source, tmp_path / "out.gguf", "Q8_0", imatrix=imatrix)
    field = read_gguf(tmp_path / "out.gguf").fields["quantize.imatrix.file"]
    assert field.value == imatrix.metadata_overrides()[0].value


def test_broken_gguf_matrices(tmp_path: Path) -> None:
    sums, counts = {Q: np.ones(32)}, {Q: np.ones(1)}
    path = tmp_path / "imatrix.gguf"

    def refused(match: str) -> None:
        with pytest.raises(ImatrixError, match=match) as caught:
            load_imatrix(path)
        assert "\n" not in str(caught.value)

    write_imatrix(path, sums, {})
    refused("sums without counts")
    write_imatrix(path, {}, counts)
    refused("counts without sums")
    write_imatrix(path, {}, {})
    refused("holds no importance data")
    write_imatrix(path, sums, {Q: np.ones(3)})
    refused("32 sums for 3 counts")
    write_imatrix(path, sums, {Q: np.array([np.nan])})
    refused("counts that are not finite")
    for key in ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"):
        write_imatrix(path, sums, counts, leave_out=key)
        refused(f"has no {key}")
    write_tiny(path)
    refused("no importance matrix")
    path.unlink()
    refused("No such file")
    path.mkdir()
    refused("directory")


def test_sums_must_be_single_precision(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "half.gguf", "")
    writer.add_array("imatrix.datasets", ["a"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 1)
    writer.add_tensor(f"{Q}.in_sum2", np.ones((1, 32), np.float16))
    writer.add_tensor(f"{Q}.counts", np.ones((1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ImatrixError, match="is F16, not F32"):
        load_imatrix(tmp_path / "half.gguf")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.booleans())
@example(0, False)
def test_damaged_files_are_refused_or_read(tmp_path: Path, seed: int, legacy: bool) -> None:
    """No damage ends in anything but values that are finite or an ImatrixError."""
    chance = random.Random(seed)
    entries = {name: (3, numbers(64, i)) for i, name in enumerate((Q, K))}
    path = write_legacy_imatrix(tmp_path / "a.dat", entries) if legacy else tmp_path / "a.gguf"
    if not legacy:
        write_imatrix(path, {Q: numbers(64, 1), K: numbers(64, 2)}, {Q: np.ones(1), K: np.ones(2)})
    data = bytearray(path.read_bytes())
    for _ in range(chance.randint(1, 4)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    path.write_bytes(data[: chance.choice((len(data), chance.randrange(len(data))))])
    try:
        imatrix = load_imatrix(path)
    except ImatrixError as error:
        assert "\n" not in str(error)
    else:
        assert all(np.isfinite(values).all() for values in imatrix.values.values())


@pytest.mark.parametrize("cut", [0, 3, 4, 10, 30, 60, 100, 300])
def test_cut_legacy_files(tmp_path: Path, cut: int) -> None:
    path = write_legacy_imatrix(tmp_path / "a.dat", {Q: (3, np.ones(64)), K: (3, np.ones(64))})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ImatrixError, match="no importance matrix"):
        load_imatrix(path)


def test_text_is_no_matrix(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("nothing of importance\n" * 10)
    with pytest.raises(ImatrixError, match="no importance matrix: number of entries is 1752461166"):
        load_imatrix(path)
    path.write_bytes(struct.pack("<i", 1) + struct.pack("<i", 2) + b"ab" + struct.pack("<ii", 1, 0))
    with pytest.raises(ImatrixError, match="number of values of ab is 0 at byte 14"):
        load_imatrix(path)
