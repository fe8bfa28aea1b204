"""GGUF metadata: typed fields to bytes and back, by the GGUF specification (ggml/docs/gguf.md)."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf.constants import GGUFValueType

from .errors import GgufError

SCALARS: dict[GGUFValueType, str] = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
    GGUFValueType.BOOL: "<?",
}
# Four times what the largest vocabularies take: a damaged count must not fill the memory.
LONGEST_HEADER = 2**26
LONGEST_ARRAY = 2**23
LENGTH = struct.Struct("<Q")
LENGTH_OF_1 = struct.Struct("<I")


@dataclass(frozen=True)
class Field:
    """A value of the metadata with its GGUF type; `item_type` is that of an array's items."""

    value: Any
    type: GGUFValueType
    item_type: GGUFValueType | None = None


def field_of(value: Any) -> Field:
    """Return a value as a field of the type that llama.cpp's converter gives it.

    str, bool, float (float32), int (uint32), and sequences of one of them (int32 and float32 items).
    """
    if isinstance(value, Field):
        return value
    if isinstance(value, (list, tuple)):
        if not value:
            raise ValueError("an empty array has no item type")
        return Field(value, GGUFValueType.ARRAY, GGUFValueType.get_type(value[0]))
    if isinstance(value, int) and not isinstance(value, bool):
        return Field(value, GGUFValueType.UINT32)
    return Field(value, GGUFValueType.get_type(value))


def pack_string(text: str | bytes) -> bytes:
    """Pack a string: length (uint64), then UTF-8 bytes."""
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def pack_value(value: Any, kind: GGUFValueType, item_type: GGUFValueType | None = None) -> bytes:
    """Pack one value without its type."""
    if kind is GGUFValueType.STRING:
        return pack_string(value)
    if kind is not GGUFValueType.ARRAY:
        return struct.pack(SCALARS[kind], value)
    if item_type is None:
        raise ValueError("an array needs an item type")
    head = struct.pack("<IQ", item_type, len(value))
    if item_type in SCALARS:
        return head + struct.pack(f"<{len(value)}{SCALARS[item_type][1]}", *value)
    if item_type is GGUFValueType.STRING:  # a vocabulary: `pack_string` written out
        strings = (item.encode("utf-8", "surrogateescape") if isinstance(item, str) else item for item in value)
        return head + b"".join([part for data in strings for part in (LENGTH.pack(len(data)), data)])
    return head + b"".join(pack_value(item, item_type) for item in value)


def pack_fields(fields: Mapping[str, Field]) -> bytes:
    """Pack the metadata section: for each field its key, its type and its value."""
    return b"".join(
        pack_string(key) + struct.pack("<I", field.type) + pack_value(field.value, field.type, field.item_type)
        for key, field in fields.items()
    )


class Cursor:
    """Reads a header byte by byte and refuses to leave the file."""

    def __init__(self, data: Any, size: int, path: str) -> None:
        self.data, self.size, self.path, self.at = data, min(size, LONGEST_HEADER), path, 0
        # Lengths, counts and dimensions are of 64 bits since version 2.
        self.length = LENGTH

    def fail(self, what: str) -> GgufError:
        """Return the error for what is wrong at this byte."""
        return GgufError(f"{self.path}: broken GGUF header at byte {self.at}: {what}; download or convert it again")

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        if count > self.size - self.at:
            raise self.fail(f"{count} bytes wanted, {self.size - self.at} left for the header")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, layout: str) -> Any:
        """Unpack one number."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def string(self) -> str:
        """Unpack one string; bytes that are not UTF-8 survive a round trip through `pack_string`."""
        return self.take(self.number(self.length.format)).decode("utf-8", "surrogateescape")

    def field(self) -> Field:
        """Unpack one typed value."""
        kind = self._type()
        if kind is not GGUFValueType.ARRAY:
            return Field(self._value(kind), kind)
        item_type, count = self._type(), self.number(self.length.format)
        if item_type is GGUFValueType.ARRAY:
            raise self.fail("arrays of arrays are not in use")
        if count > min(self.size - self.at, LONGEST_ARRAY):
            raise self.fail(f"an array of {count} items does not fit")
        if item_type is GGUFValueType.STRING:
            return Field(self._strings(count), kind, item_type)
        layout = SCALARS[item_type]
        data = self.take(count * struct.calcsize(layout))
        return Field(np.frombuffer(data, layout).tolist(), kind, item_type)

    def _strings(self, count: int) -> list[str]:
        """Unpack many strings: vocabularies are read whenever a model is, so this is `string` written out."""
        data, at, size, length = self.data, self.at, self.size, self.length.unpack_from
        found = []
        for _ in range(count):
            start = at + self.length.size
            stop = start + length(data, at)[0] if start <= size else start
            if stop > size:
                self.at = at
                self.string()  # says what is wrong
            found.append(data[start:stop].decode("utf-8", "surrogateescape"))
            at = stop
        self.at = at
        return found

    def _type(self) -> GGUFValueType:
        number = self.number("<I")
        try:
            return GGUFValueType(number)
        except ValueError:
            raise self.fail(f"unknown value type {number}") from None

    def _value(self, kind: GGUFValueType) -> Any:
        return self.string() if kind is GGUFValueType.STRING else self.number(SCALARS[kind])


def plain(fields: Mapping[str, Field]) -> dict[str, Any]:
    """Return the metadata as plain Python values."""
    return {key: field.value for key, field in fields.items()}


def strings(values: Sequence[str]) -> Field:
    """Return an array of strings as a field."""
    return Field(list(values), GGUFValueType.ARRAY, GGUFValueType.STRING)
