"""Metadata of every type: packed as the `gguf` package packs it, read as it reads it, refused in one line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGUFValueType
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_gguf.formats.errors import GgufError
from moe_gguf.formats.gguf_fields import Cursor, Field, field_of, pack_fields, pack_string
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.formats.gguf_layout import lay_out

T = GGUFValueType
INTEGERS = {
    T.UINT8: (0, 2**8 - 1),
    T.INT8: (-(2**7), 2**7 - 1),
    T.UINT16: (0, 2**16 - 1),
    T.INT16: (-(2**15), 2**15 - 1),
    T.UINT32: (0, 2**32 - 1),
    T.INT32: (-(2**31), 2**31 - 1),
    T.UINT64: (0, 2**64 - 1),
    T.INT64: (-(2**63), 2**63 - 1),
}
VALUES: dict[GGUFValueType, st.SearchStrategy[Any]] = {
    **{kind: st.integers(*limits) for kind, limits in INTEGERS.items()},
    T.FLOAT32: st.floats(width=32, allow_nan=False),
    T.FLOAT64: st.floats(allow_nan=False),
    T.BOOL: st.booleans(),
    T.STRING: st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
}


def scalars() -> st.SearchStrategy[Field]:
    return st.sampled_from(list(VALUES)).flatmap(lambda kind: st.builds(Field, VALUES[kind], st.just(kind)))


def arrays() -> st.SearchStrategy[Field]:
    def of(kind: GGUFValueType) -> st.SearchStrategy[Field]:
        return st.builds(Field, st.lists(VALUES[kind], min_size=1, max_size=9), st.just(T.ARRAY), st.just(kind))

    return st.sampled_from(list(VALUES)).flatmap(of)


FIELDS = st.dictionaries(st.text("abc._", min_size=1, max_size=12), scalars() | arrays(), max_size=8)


def written_by_gguf(path: Path, fields: Mapping[str, Field]) -> bytes:
    """Return the bytes of a file without tensors that the `gguf` package writes."""
    writer = gguf.GGUFWriter(path, arch="llama")
    for key, field in fields.items():
        writer.add_key_value(key, field.value, field.type, sub_type=field.item_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path.read_bytes()


@settings(max_examples=150, deadline=None)
@given(fields=FIELDS)
def test_fields_are_packed_and_read_as_by_the_gguf_package(
    fields: dict[str, Field], tmp_path_factory: pytest.TempPathFactory
) -> None:
    fields = {"general.architecture": field_of("llama"), **fields}
    path = tmp_path_factory.getbasetemp() / "fields.gguf"
    theirs = written_by_gguf(path, fields)
    assert theirs[24:] == pack_fields(fields)
    assert lay_out(fields, ()).header[: len(theirs)] == theirs
    file = read_gguf(path)
    assert file.fields == fields and list(file.fields) == list(fields)
    reader = gguf.GGUFReader(path)
    for key, field in fields.items():
        assert file.metadata[key] == field.value
        assert reader.fields[key].types[0] == field.type
        assert reader.fields[key].contents() == field.value


@given(data=st.binary(max_size=40))
def test_text_that_is_no_utf8_survives(data: bytes) -> None:
    packed = pack_string(data)
    text = Cursor(packed, len(packed), "x").string()
    assert pack_string(text) == packed


@pytest.mark.parametrize(
    ("value", "kind", "item_type"),
    [
        ("llama", T.STRING, None),
        (True, T.BOOL, None),
        (0.5, T.FLOAT32, None),
        (7, T.UINT32, None),
        ([1, 2], T.ARRAY, T.INT32),
        ((0.5,), T.ARRAY, T.FLOAT32),
        (["a"], T.ARRAY, T.STRING),
        ([True], T.ARRAY, T.BOOL),
    ],
)
def test_types_are_those_of_the_converter(value: Any, kind: GGUFValueType, item_type: GGUFValueType | None) -> None:
    assert field_of(value) == Field(value, kind, item_type)
    assert field_of(field_of(value)) == field_of(value)


def test_an_empty_array_has_no_type() -> None:
    with pytest.raises(ValueError, match="empty"):
        field_of([])
    empty = {"key": Field([], T.ARRAY, T.FLOAT32)}
    packed = pack_fields(empty)
    cursor = Cursor(packed, len(packed), "x")
    assert cursor.string() == "key" and cursor.field() == empty["key"]


def array_head(item_type: int, count: int) -> bytes:
    return np.array([T.ARRAY, item_type], "<u4").tobytes() + np.array([count], "<u8").tobytes()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x08\0\0\0" + b"\xff" * 8, "bytes wanted"),
        (b"\x08\0\0\0" + b"\x05" + bytes(7) + b"abc", "5 bytes wanted, 3 left"),
        (b"\x63\0\0\0", "unknown value type 99"),
        (b"\x04\0\0", "4 bytes wanted, 3 left"),
        (array_head(T.STRING, 2**60) + bytes(64), "array of 1152921504606846976 items"),
        (array_head(T.UINT8, 2**60) + bytes(64), "array of 1152921504606846976 items"),
        (array_head(T.STRING, 9) + bytes(64), "bytes wanted, 0 left"),
        (array_head(T.FLOAT64, 9) + bytes(64), "72 bytes wanted, 64 left"),
        (array_head(T.ARRAY, 1) + array_head(T.UINT8, 1) + b"\0", "arrays of arrays"),
        (array_head(77, 1) + b"\0", "unknown value type 77"),
    ],
)
def test_damaged_values_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(GgufError, match="broken GGUF header at byte") as caught:
        Cursor(data, len(data), "x.gguf").field()
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_header_has_an_end_even_in_an_endless_file() -> None:
    data = array_head(T.INT64, 2**40)
    for size in (2**43, 2**50):
        with pytest.raises(GgufError, match="does not fit"):
            Cursor(data, size, "x.gguf").field()
