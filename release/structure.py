"""The bytes of a GGUF file that are no weight: its header as its content packs to it, and zeros wherever it pads.

A file (read) and its bytes by place come in; problems go out. What a header says is compared with a source elsewhere.
"""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from gguf.constants import GGUF_MAGIC, GGUF_VERSION

from ..formats.gguf_fields import pack_fields, pack_string
from ..formats.gguf_file import GgufFile, read_shard
from ..formats.gguf_layout import padded
from ..formats.positional import PositionalFile
from .problems import Kind, Problem

# Longer gaps between tensors than any alignment leaves are read in pieces.
PIECE = 2**20
Read = Callable[[Path, int, int], bytes]


def read_local(path: Path, start: int, stop: int) -> bytes:
    """Return bytes [start, stop) of a file of this machine."""
    data = bytearray(stop - start)
    with PositionalFile(path) as file:
        file.read_into(start, memoryview(data))
    return bytes(data)


def structure_problems(file: GgufFile, read: Read = read_local, padding: bool = True) -> Iterator[Problem]:
    """Yield what is wrong with headers and padding of a file and its shards; without `padding` the headers alone."""
    for path in file.shards:
        shard = file if len(file.shards) == 1 else read_shard(path, oldest=1)
        yield from _header(shard, read)
        if padding:
            yield from _padding(shard, read)


def _header(shard: GgufFile, read: Read) -> Iterator[Problem]:
    """Pack again what was read: a byte that means the same and is another was not written by any program."""
    if shard.version != GGUF_VERSION:
        return
    head = struct.pack("<IIQQ", GGUF_MAGIC, GGUF_VERSION, len(shard.tensors), len(shard.fields))
    packed = bytearray(head + pack_fields(shard.fields))
    for tensor in shard.tensors.values():
        packed += pack_string(tensor.name) + struct.pack("<I", len(tensor.shape))
        packed += struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape)
        packed += struct.pack("<IQ", tensor.qtype, tensor.offset - shard.header_bytes)
    packed += bytes(shard.header_bytes - len(packed))
    found = read(shard.path, 0, shard.header_bytes)
    if packed == found:
        return
    at = next((i for i, (one, other) in enumerate(zip(packed, found, strict=False)) if one != other), None)
    if at is not None:
        message = f"byte {at} of the header is {found[at]:#04x} where its content is written {packed[at]:#04x}"
        yield Problem(Kind.STRUCTURE, f"{shard.path.name}: {message}; it was damaged")


def _padding(shard: GgufFile, read: Read) -> Iterator[Problem]:
    size = shard.path.stat().st_size
    at = shard.header_bytes
    ordered = sorted(shard.tensors.values(), key=lambda tensor: tensor.offset)
    for tensor in ordered:
        if gap := _nonzero(shard.path, at, tensor.offset, read):
            yield Problem(Kind.PADDING, f"{shard.path.name}: {gap} before {tensor.name}", tensor.name)
        elif tensor.offset != padded(at, shard.alignment):
            message = f"{shard.path.name}: {tensor.offset - at} bytes that belong to nothing before {tensor.name}"
            yield Problem(Kind.STRUCTURE, message, tensor.name)
        at = tensor.offset + tensor.n_bytes
    last = ordered[-1].name if ordered else None
    if gap := _nonzero(shard.path, at, min(size, padded(at, shard.alignment)), read):
        yield Problem(Kind.PADDING, f"{shard.path.name}: {gap} behind {last}", last)
    if (behind := size - padded(at, shard.alignment)) > 0:
        message = f"{shard.path.name}: {behind} bytes follow the last tensor ({last}) that belong to nothing"
        yield Problem(Kind.STRUCTURE, message, last)


def _nonzero(path: Path, start: int, stop: int, read: Read) -> str:
    """Return in words the first byte of padding that is not zero, "" when all are."""
    for at in range(start, stop, PIECE):
        data = read(path, at, min(at + PIECE, stop))
        if any(data):
            where = at + next(i for i, byte in enumerate(data) if byte)
            return f"byte {where} is {data[where - at]:#04x}, not zero, in the padding"
    return ""
