"""Ways to damage a small checkpoint on disk, one function each; every one returns what does the damage."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .. import checkpoints
from ..checkpoints import Stored, Tiny, header, stored, write_safetensors, write_shards

Break = Callable[[Path], object]
Words = tuple[str, ...]

SMALL = Tiny(n_layer=2, n_embd=32, n_ff=32, n_vocab=320, n_expert=4)
FUSED = Tiny(n_layer=2, n_embd=32, n_ff=32, n_vocab=320, n_expert=4, layout="fused")


def retouch(name: str, change: Callable[[dict[str, Any]], object]) -> Break:
    """Return a break that changes a JSON file in place."""

    def apply(source: Path) -> None:
        document = json.loads((source / name).read_text())
        change(document)
        (source / name).write_text(json.dumps(document))

    return apply


def setting(key: str, value: Any) -> Break:
    """Return a break that sets a key of config.json."""
    return retouch("config.json", lambda config: config.__setitem__(key, value))


def retensor(change: Callable[[dict[str, Stored]], object], tiny: Tiny = SMALL) -> Break:
    """Return a break that writes other tensors, with a header that fits them."""

    def apply(source: Path) -> None:
        tensors = checkpoints.tensors(tiny)
        change(tensors)
        write_shards(source, tensors)

    return apply


def rehead(change: Callable[[dict[str, Any]], object]) -> Break:
    """Return a break that writes the right bytes under another header."""

    def apply(source: Path) -> None:
        tensors = checkpoints.tensors(SMALL)
        head = header(tensors)
        write_safetensors(source / "model.safetensors", tensors, change(head) or head)

    return apply


def entry(key: str, value: Any, name: str = "model.norm.weight") -> Break:
    """Return a break that sets one field of one tensor in the header."""
    return rehead(lambda head: head[name].__setitem__(key, value))


def sharded(then: Break) -> Break:
    """Return a break of the checkpoint in three shards."""

    def apply(source: Path) -> None:
        (source / "model.safetensors").unlink()
        write_shards(source, checkpoints.tensors(SMALL), (9, 20))
        then(source)

    return apply


def cut(name: str, size: int) -> Break:
    """Return a break that leaves `size` bytes of a file, or all but -size when it is negative."""

    def apply(source: Path) -> None:
        data = (source / name).read_bytes()
        (source / name).write_bytes(data[:size])

    return apply


def poisoned(name: str, row: int, value: float, tiny: Tiny = SMALL, expert: int | None = None) -> Break:
    """Return a break that puts a value into a row of a tensor (or of an expert's matrix in a fused one)."""

    def change(tensors: dict[str, Stored]) -> None:
        dtype, shape, data = tensors[name]
        bits = np.frombuffer(data, np.uint16).reshape(shape).copy()
        matrix = bits if expert is None else bits[expert]
        matrix[row, 3] = checkpoints.to_bf16(np.array([value], np.float32))[0]
        tensors[name] = dtype, shape, bits.tobytes()

    return retensor(change, tiny)


def raw(length: int, text: bytes) -> Break:
    """Return a break that makes model.safetensors a header length and some bytes."""
    return lambda source: (source / "model.safetensors").write_bytes(length.to_bytes(8, "little") + text)


def reshaped(name: str, *shape: int) -> Break:
    """Return a break that gives a tensor another shape."""
    return retensor(lambda t: t.__setitem__(name, stored(np.zeros(shape, np.float32), "BF16")))


def without(name: str) -> Break:
    return retensor(lambda tensors: tensors.pop(name))


def leave_a_hole(source: Path) -> None:
    """Put four bytes that belong to no tensor between two tensors."""
    tensors = checkpoints.tensors(SMALL)
    head = header(tensors)
    last = list(tensors)[-1]
    head[last]["data_offsets"] = [offset + 4 for offset in head[last]["data_offsets"]]
    dtype, shape, data = tensors[last]
    tensors[last] = dtype, shape, b"hole" + data
    write_safetensors(source / "model.safetensors", tensors, head)
