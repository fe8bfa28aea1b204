"""Routers swapped in a finished GGUF: file and gates come in, a copy with only its routers' bytes changed goes out."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from gguf.constants import Keys

from ..formats.errors import GgufError, OutputError
from ..formats.floats import encode_float, widen
from ..formats.gguf_file import GgufFile, GgufTensor, same_file
from ..formats.gguf_layout import shard_path
from ..writer.gguf_source import GgufSource
from ..writer.plan import FLOAT_TYPES
from .gates import ROUTER, SHARED_ROUTER, Gates, check_gates

COPIED_BYTES = 16 * 2**20
Advance = Callable[[int], object]


def regate(
    file: GgufFile, gates: Gates, output: Path, force: bool = False, advance: Advance = lambda n_bytes: None
) -> list[Path]:
    """Write a copy of a GGUF file (or of all its shards) with other routers; return the files written.

    Everything else stays as it is, byte for byte. Raises GgufError when the file has no routers that can be swapped,
    RecipeError when the gates do not fit, OutputError when an output exists (unless `force`), is the input, or does
    not fit on the disk.
    """
    routers = router_bytes(file, gates)
    count = len(file.shards)
    outputs = [output if count == 1 else shard_path(output, i, count) for i in range(count)]
    _check_outputs(file, outputs, force)
    partials = [path.with_name(path.name + ".partial") for path in outputs]
    try:
        for shard, partial in zip(file.shards, partials, strict=True):
            _copy(shard, partial, [(tensor, data) for tensor, data in routers if tensor.path == shard], advance)
        for partial, path in zip(partials, outputs, strict=True):
            os.replace(partial, path)
    finally:
        for partial in partials:
            partial.unlink(missing_ok=True)
    return outputs


def router_shape(file: GgufFile) -> tuple[int, int, int]:
    """Return (n_layer, n_expert, n_embd) of a mixture's routers. Raises GgufError when the file is none."""
    n_expert = int(file.hyper(Keys.LLM.EXPERT_COUNT, 0) or 0)
    n_layer = int(file.hyper(Keys.LLM.BLOCK_COUNT, 0) or 0)
    if not n_expert:
        raise GgufError(f"{file.path}: not a mixture of experts, so it has no routers")
    for layer in range(n_layer):
        if ROUTER.format(layer=layer) not in file.tensors:
            raise GgufError(f"{file.path}: layer {layer} has no router ({ROUTER.format(layer=layer)})")
    n_embd = file.tensors[ROUTER.format(layer=0)].shape[0]
    return n_layer, n_expert, n_embd


def read_routers(file: GgufFile) -> Gates:
    """Return the gates of a finished mixture. Raises GgufError when it has none, or quantized ones."""
    source = GgufSource(file)

    def stacked(pattern: str) -> np.ndarray | None:
        names = [pattern.format(layer=layer) for layer in range(n_layer)]
        if not all(name in file.tensors for name in names):
            return None
        for name in names:
            _float_type(file, file.tensors[name])
        return np.stack([widen(source.read_rows(name, 0, source.tensors[name].n_rows)) for name in names])

    n_layer, _, _ = router_shape(file)
    routers = stacked(ROUTER)
    assert routers is not None
    return Gates(routers, stacked(SHARED_ROUTER))


def router_bytes(file: GgufFile, gates: Gates) -> list[tuple[GgufTensor, bytes]]:
    """Return each router of the file with its new bytes, in the type it is stored as."""
    n_layer, n_expert, n_embd = router_shape(file)
    check_gates(gates, n_layer, n_expert, n_embd, 0, str(file.path))
    swapped = [(ROUTER, gates.routers)] + ([(SHARED_ROUTER, gates.shared)] if gates.shared is not None else [])
    found = []
    for pattern, every in swapped:
        for layer, router in enumerate(every):
            tensor = file.tensors.get(pattern.format(layer=layer))
            if tensor is not None:
                found.append((tensor, encode_float(router, FLOAT_TYPES[_float_type(file, tensor)]).tobytes()))
    return found


def _float_type(file: GgufFile, tensor: GgufTensor) -> str:
    if tensor.qtype.name not in FLOAT_TYPES:
        raise GgufError(f"{file.path}: {tensor.name} is quantized ({tensor.qtype.name}); only F32 routers are swapped")
    return tensor.qtype.name


def _copy(source: Path, target: Path, routers: list[tuple[GgufTensor, bytes]], advance: Advance) -> None:
    with source.open("rb") as read, target.open("w+b") as write:
        while block := read.read(COPIED_BYTES):
            write.write(block)
            advance(len(block))
        for tensor, data in routers:
            if len(data) != tensor.n_bytes:
                raise GgufError(f"{source}: {tensor.name} has {tensor.n_bytes} bytes, the new router {len(data)}")
            write.seek(tensor.offset)
            write.write(data)
        write.flush()
        os.fsync(write.fileno())


def _check_outputs(file: GgufFile, outputs: list[Path], force: bool) -> None:
    for path in outputs:
        if path.is_dir():
            raise OutputError(f"{path}: is a folder; name a file")
        if not path.absolute().parent.is_dir():
            raise OutputError(f"{path.parent}: no such folder; create it first")
        if any(same_file(path, shard) for shard in file.shards):
            raise OutputError(f"{path}: the output is the input; choose another name")
        if path.exists() and not force:
            raise OutputError(f"{path}: exists already; choose another name, or overwrite it with --force")
    needed = sum(shard.stat().st_size for shard in file.shards)
    free = shutil.disk_usage(outputs[0].absolute().parent).free
    if needed > free:
        raise OutputError(f"{outputs[0].parent}: {needed:,} bytes are needed, {free:,} are free; write elsewhere")
