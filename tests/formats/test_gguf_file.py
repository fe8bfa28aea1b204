"""GGUF headers as the `gguf` package reads them; damaged ones end in one line, at once and without large memory."""

import struct
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_gguf.formats.gguf_fields import LONGEST_HEADER, Field, field_of, pack_fields, pack_string
from moe_gguf.formats.gguf_file import read_gguf, read_shard, tensor_bytes
from moe_gguf.formats.gguf_layout import TensorEntry, lay_out
from moe_gguf.writer.gguf_source import GgufSource, plan_from_gguf
from moe_gguf.writer.partial import split_output
from moe_gguf.writer.write import write

from ..arrays import FIELDS, output_of, plan_of, random_arrays, write_with_gguf
from ..refusal import refusal

T = GGMLQuantizationType
SHAPES = {"token_embd.weight": (4, 32), "blk.0.attn_q.weight": (5, 7), "blk.0.ffn_norm.weight": (9,)}
EXPERTS = {f"blk.0.ffn_{matrix}.{expert}.weight": (3, 32) for matrix in ("gate", "up") for expert in range(3)}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    fields = {**FIELDS, "llama.expert_count": field_of(3), "split.count": Field(1, GGUFValueType.UINT16)}
    [path] = write_with_gguf(folder / "small.gguf", random_arrays(SHAPES | EXPERTS), fields)
    return path


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint16"])
def test_tensors_are_those_that_the_gguf_package_reads(dtype: str, tmp_path: Path) -> None:
    arrays = random_arrays(SHAPES | {"experts": (3, 4, 5)}, dtype)
    [path] = write_with_gguf(tmp_path / "x.gguf", arrays)
    file, source = read_gguf(path), GgufSource(read_gguf(path))
    for theirs, ours in zip(gguf.GGUFReader(path).tensors, file.tensors.values(), strict=True):
        assert (ours.name, ours.shape, ours.qtype) == (theirs.name, tuple(theirs.shape.tolist()), theirs.tensor_type)
        assert (ours.offset, ours.n_bytes) == (theirs.data_offset, theirs.n_bytes)
        rows = source.read_rows(ours.name, 0, source.tensors[ours.name].n_rows)
        assert rows.tobytes() == theirs.data.tobytes() == arrays[ours.name].tobytes()
        assert source.tensors[ours.name].shape == arrays[ours.name].shape


@pytest.mark.parametrize("qtype", list(T))
def test_every_type_has_its_bytes(qtype: T) -> None:
    block_size, type_size = GGML_QUANT_SIZES[qtype]
    assert tensor_bytes((2 * block_size, 3), qtype) == 6 * type_size
    if block_size > 1:
        with pytest.raises(ValueError, match=f"blocks of {block_size}"):
            tensor_bytes((block_size + 1, 3), qtype)


NUMBERS = st.sampled_from([0, 1, 2, 7, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_any_damage_is_read_or_refused(data: st.DataObject, small: Path) -> None:
    content = bytearray(small.read_bytes())
    end = read_gguf(small).header_bytes
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, end))
        kind = data.draw(st.sampled_from(["flip", "number", "junk", "cut", "drop", "repeat"]))
        if kind == "flip":
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "number":
            width = data.draw(st.sampled_from([1, 2, 4, 8]))
            content[at : at + width] = data.draw(NUMBERS).to_bytes(8, "little")[:width]
        elif kind == "junk":
            content[at : at + 4] = data.draw(st.binary(max_size=12))
        elif kind == "drop":
            del content[at : at + data.draw(st.integers(1, 16))]
        elif kind == "repeat":
            content[at:at] = content[at : at + data.draw(st.integers(1, 64))]
        else:
            del content[data.draw(st.integers(0, len(content))) :]
            content += bytes(end + 1)
    damaged = small.with_name("damaged.gguf")
    damaged.write_bytes(content)
    refusal(damaged, lambda path: plan_from_gguf(read_gguf(path)))


@settings(max_examples=100, deadline=None)
@given(keep=st.floats(0, 1, exclude_max=True))
def test_any_truncation_is_refused(keep: float, small: Path) -> None:
    content = small.read_bytes()
    cut = small.with_name("cut.gguf")
    # The last tensor's padding is no loss.
    cut.write_bytes(content[: min(int(keep * len(content)), len(content) - 32)])
    assert str(cut) in refusal(cut)


def tensor_entry(
    name: bytes = b"t", shape: tuple[int, ...] = (8,), qtype: int = 0, offset: int = 0, n_dims: int | None = None
) -> bytes:
    dims = len(shape) if n_dims is None else n_dims
    return pack_string(name) + struct.pack(f"<I{len(shape)}QIQ", dims, *shape, qtype, offset)


def raw_file(
    entries: list[bytes],
    fields: bytes = b"",
    n_fields: int = 0,
    n_tensors: int | None = None,
    magic: bytes = b"GGUF",
    version: int = 3,
) -> bytes:
    count = len(entries) if n_tensors is None else n_tensors
    header = magic + struct.pack("<IQQ", version, count, n_fields) + fields + b"".join(entries)
    return header + bytes(-len(header) % 32) + bytes(256)


def one_field(key: str, field: Field) -> dict[str, Any]:
    return {"entries": [tensor_entry()], "fields": pack_fields({key: field}), "n_fields": 1}


U16, U32, U64 = GGUFValueType.UINT16, GGUFValueType.UINT32, GGUFValueType.UINT64
TWICE = pack_fields({"a": field_of(1)}) * 2
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "another magic": ({"entries": [], "magic": b"GGJT"}, "not a GGUF file"),
    "version 1": (
        {"entries": [], "version": 1},
        "version 1 (the first, of August 2023), which llama.cpp no",
    ),
    "version 0": ({"entries": [], "version": 0}, "version 0;"),
    "version 4": ({"entries": [], "version": 4}, "version 4;"),
    "big-endian": ({"entries": [], "version": 3 << 24}, "big-endian"),
    "2**60 tensors": ({"entries": [], "n_tensors": 2**60}, "do not fit"),
    "2**60 fields": ({"entries": [], "n_fields": 2**60}, "do not fit"),
    "a tensor too many": ({"entries": [tensor_entry()], "n_tensors": 2}, "0 dimensions"),
    "a key twice": ({"entries": [], "fields": TWICE, "n_fields": 2}, "'a' twice"),
    "a tensor twice": ({"entries": [tensor_entry(), tensor_entry(offset=32)]}, "twice"),
    "overlap": ({"entries": [tensor_entry(b"a", (16,)), tensor_entry(b"b", (8,), offset=32)]}, "overlap"),
    "overlap of all": ({"entries": [tensor_entry(b"a"), tensor_entry(b"b")]}, "overlap"),
    "offset beyond the end": ({"entries": [tensor_entry(offset=2**40)]}, "truncated"),
    "offset that wraps around": ({"entries": [tensor_entry(offset=2**64 - 32)]}, "truncated"),
    "offset between two places": ({"entries": [tensor_entry(offset=4)]}, "not a multiple of 32"),
    "no dimension": ({"entries": [tensor_entry(shape=())]}, "0 dimensions"),
    "five dimensions": ({"entries": [tensor_entry(shape=(1, 1, 1, 1, 1))]}, "5 dimensions"),
    "2**32 - 1 dimensions": ({"entries": [tensor_entry(n_dims=2**32 - 1)]}, "4294967295 dimensions"),
    "a dimension of zero": ({"entries": [tensor_entry(shape=(8, 0))]}, "impossible shape"),
    "weights beyond 64 bits": ({"entries": [tensor_entry(shape=(2**40, 2**40, 2**40))]}, "impossible shape"),
    "a negative dimension": ({"entries": [tensor_entry(shape=(2**64 - 8,))]}, "impossible shape"),
    "an unknown type": ({"entries": [tensor_entry(qtype=4)]}, "is of Q4_2, a type that llama.cpp removed"),
    "a name without end": ({"entries": [tensor_entry(b"n" * 5000)]}, "name of 5000 characters"),
    "a long key twice": ({"entries": [], "fields": pack_fields({"k" * 999: field_of(1)}) * 2, "n_fields": 2}, "twice"),
    "half a block": ({"entries": [tensor_entry(shape=(48,), qtype=int(T.Q8_0))]}, "blocks of 32"),
    "alignment 0": (one_field("general.alignment", Field(0, U32)), "power of two"),
    "alignment 24": (one_field("general.alignment", Field(24, U32)), "power of two"),
    "alignment 2**63": (one_field("general.alignment", Field(2**63, U64)), "power of two"),
    "alignment in words": (one_field("general.alignment", field_of("x" * 200)), "power of two"),
    "split count in words": (one_field("split.count", field_of("two")), "split.count"),
    "split count as an array": (one_field("split.count", field_of([2])), "split.count"),
    "split count NaN": (one_field("split.count", field_of(float("nan"))), "split.count"),
    "2**60 shards": (one_field("split.count", Field(2**60, U64)), "rename it"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    keywords, words = HOSTILE[name]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(raw_file(**keywords))
    line = refusal(path)
    assert words in line and str(path) in line


def test_a_sound_raw_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sound.gguf"
    path.write_bytes(raw_file([tensor_entry(), tensor_entry(b"\xff\xfe", offset=32)], version=2))
    assert list(read_gguf(path).tensors) == ["t", "\udcff\udcfe"]


@pytest.mark.parametrize("kind", [GGUFValueType.UINT8, GGUFValueType.STRING, GGUFValueType.FLOAT64])
def test_a_damaged_count_in_a_large_file_takes_no_memory(kind: GGUFValueType, tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    head = pack_string("k") + struct.pack("<IIQ", GGUFValueType.ARRAY, kind, 2**31)
    with path.open("wb") as file:
        file.write(raw_file([], head, n_fields=1)[:-256])
        file.truncate(2**36)
    assert "array of 2147483648 items does not fit" in refusal(path)


def test_a_string_longer_than_any_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    with path.open("wb") as file:
        file.write(raw_file([tensor_entry()])[:24] + struct.pack("<Q", LONGEST_HEADER))
        file.truncate(2**34)
    assert "left for the header" in refusal(path)


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "short.gguf").write_bytes(b"GGUF")
    assert "(4 bytes)" in refusal(tmp_path / "short.gguf")
    assert "no such file" in refusal(tmp_path / "none.gguf")
    assert "a folder" in refusal(tmp_path)


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    arrays = random_arrays({f"t{i}": (4, 32) for i in range(6)})
    planned = plan_of(arrays)
    return list(write(planned, [split_output(output_of(planned, tmp_path / "m.gguf"), 1024)])[0].paths)


def test_shards_are_one_file(shards: list[Path]) -> None:
    file = read_gguf(shards[0])
    assert file.shards == tuple(shards) and len(shards) == 3
    assert [tensor.path for tensor in file.tensors.values()] == [path for path in shards for _ in range(2)]
    identity = GgufSource(file).identity()
    assert list(identity) == [str(path) for path in shards]
    assert not [key for key in plan_from_gguf(file).fields if key.startswith("split.")]


def test_shards_that_do_not_belong_together_are_refused(shards: list[Path], tmp_path: Path) -> None:
    assert "name m-00001-of-00003.gguf" in refusal(shards[1])
    third = shards[2].read_bytes()
    shards[2].write_bytes(shards[1].read_bytes())
    assert "written as another shard" in refusal(shards[0])
    shards[2].write_bytes(third[:-64])
    assert "truncated" in refusal(shards[0]) and shards[2].name in refusal(shards[0])
    shards[2].unlink()
    assert "missing shard of 3" in refusal(shards[0])
    shards[0].rename(tmp_path / "other.gguf")
    assert "rename it" in refusal(tmp_path / "other.gguf")


def test_a_shard_with_fewer_tensors_is_noticed(shards: list[Path]) -> None:
    file = read_shard(shards[2])
    layout = lay_out(file.fields, [TensorEntry("t4", (32, 4), T.F32)])
    shards[2].write_bytes(layout.header + bytes(layout.n_bytes - len(layout.header)))
    assert "6 tensors promised, 5 found" in refusal(shards[0])
    again = lay_out(file.fields, [TensorEntry("t3", (32, 4), T.F32)])
    shards[2].write_bytes(again.header + bytes(again.n_bytes - len(again.header)))
    assert "in two shards" in refusal(shards[0])
