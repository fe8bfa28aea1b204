"""Files are laid out byte for byte as the `gguf` package writes them: alignment, padding, shards and their names."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_gguf.formats.gguf_fields import Field
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.formats.gguf_layout import TensorEntry, group_by_size, lay_out, padded
from moe_gguf.writer.partial import split_output
from moe_gguf.writer.write import write

from ..arrays import FIELDS, output_of, plan_of, random_arrays, write_with_gguf

T = GGMLQuantizationType
SHAPES = {
    "token_embd.weight": (4, 24),
    "blk.0.attn_q.weight": (5, 7),
    "blk.0.attn_norm.weight": (3,),
    "blk.0.ffn_up_exps.weight": (2, 3, 8),
    "output.weight": (4, 24),
}


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint16"])
@pytest.mark.parametrize("alignment", [None, 8, 32, 256])
def test_a_file_is_that_of_the_gguf_package(dtype: str, alignment: int | None, tmp_path: Path) -> None:
    fields = dict(FIELDS)
    if alignment:
        fields["general.alignment"] = Field(alignment, GGUFValueType.UINT32)
    arrays = random_arrays(SHAPES, dtype)
    write_with_gguf(tmp_path / "theirs.gguf", arrays, fields)
    plan = plan_of(arrays, fields=fields)
    output = output_of(plan, tmp_path / "ours.gguf")
    write(plan, [output])
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()
    assert output.n_bytes == (tmp_path / "ours.gguf").stat().st_size


@pytest.mark.parametrize("limit", [256, 512, 1024, 4096, 10**9])
def test_shards_are_those_of_the_gguf_package(limit: int, tmp_path: Path) -> None:
    shapes = {f"blk.{i}.weight": (rows, 32) for i, rows in enumerate([1, 2, 4, 1, 16, 1, 1, 2, 3])}
    arrays = random_arrays(shapes)
    for folder in ("ours", "theirs"):
        (tmp_path / folder).mkdir()
    theirs = write_with_gguf(tmp_path / "theirs" / "Model.gguf", arrays, split_max_size=limit)
    plan = plan_of(arrays)
    written = write(plan, [split_output(output_of(plan, tmp_path / "ours" / "Model.gguf"), limit)])
    ours = sorted((tmp_path / "ours").iterdir())
    assert [path.name for path in ours] == [path.name for path in theirs]
    assert list(written[0].paths) == ours
    for our, their in zip(ours, theirs, strict=True):
        assert our.read_bytes() == their.read_bytes()
    assert list(read_gguf(ours[0]).tensors) == list(arrays)


SIZES = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 9)), min_size=1, max_size=12)


@given(sizes=SIZES, limit=st.integers(1, 5000))
def test_groups_keep_the_order_and_the_limit(sizes: list[tuple[int, int]], limit: int) -> None:
    entries = [TensorEntry(f"t{i}", shape, T.F32) for i, shape in enumerate(sizes)]
    groups = group_by_size(entries, limit, 32)
    assert [entry for group in groups for entry in group] == entries
    for group in groups:
        assert len(group) == 1 or sum(padded(entry.n_bytes, 32) for entry in group) <= limit


@settings(max_examples=50, deadline=None)
@given(
    shapes=st.lists(
        st.tuples(st.sampled_from(list(T)), st.integers(1, 3), st.lists(st.integers(1, 4), max_size=3)), max_size=6
    ),
    alignment=st.sampled_from([8, 32, 4096]),
)
def test_offsets_are_where_a_reader_finds_them(
    shapes: list[tuple[T, int, list[int]]], alignment: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    entries = [
        TensorEntry(f"t{i}", (blocks * GGML_QUANT_SIZES[qtype][0], *rest), qtype)
        for i, (qtype, blocks, rest) in enumerate(shapes)
    ]
    fields = {**FIELDS, "general.alignment": Field(alignment, GGUFValueType.UINT32)}
    layout = lay_out(fields, entries)
    path = tmp_path_factory.getbasetemp() / "layout.gguf"
    path.write_bytes(layout.header + np.zeros(layout.n_bytes - len(layout.header), np.uint8).tobytes())
    ours = read_gguf(path)
    assert {name: tensor.offset for name, tensor in ours.tensors.items()} == layout.offsets
    assert [(t.shape, t.qtype, t.n_bytes) for t in ours.tensors.values()] == [
        (entry.shape, entry.qtype, entry.n_bytes) for entry in entries
    ]
    for tensor in gguf.GGUFReader(path).tensors:
        assert tensor.data_offset == layout.offsets[tensor.name]
        assert tensor.n_bytes == ours.tensors[tensor.name].n_bytes
