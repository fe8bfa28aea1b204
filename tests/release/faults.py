"""What can happen to a GGUF file on its way: bytes flipped, cut off, experts and routers exchanged."""

from pathlib import Path

import numpy as np
from moe_gguf.formats.gguf_file import GgufFile, GgufTensor, read_gguf


def flip(path: Path, at: int, bit: int = 0) -> None:
    """Flip one bit of a file."""
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def whole(path: Path, tensor: str) -> tuple[GgufTensor, np.ndarray]:
    """Return a tensor and its bytes, [experts or 1, bytes]."""
    found = read_gguf(path).tensors[tensor]
    data = np.fromfile(path, np.uint8, found.n_bytes, offset=found.offset)
    return found, data.reshape(found.shape[2] if len(found.shape) == 3 else 1, -1)


def put(path: Path, tensor: GgufTensor, data: np.ndarray) -> None:
    """Write a tensor's bytes back."""
    with open(path, "r+b") as file:
        file.seek(tensor.offset)
        file.write(data.tobytes())


def swap_experts(path: Path, tensor: str, one: int, other: int) -> None:
    """Exchange the bytes of two experts in a stacked tensor."""
    found, data = whole(path, tensor)
    data[[one, other]] = data[[other, one]]
    put(path, found, data)


def change_router(path: Path, tensor: str, expert: int) -> None:
    """Scale an expert's row of a router in F32."""
    found, data = whole(path, tensor)
    rows = data.reshape(-1).view(np.float32).reshape(found.shape[1], found.shape[0])
    rows[expert] *= 1.01
    put(path, found, rows)


def padding_of(file: GgufFile) -> int:
    """Return the place of a byte of padding between two tensors, or behind the header's content."""
    ordered = sorted(file.tensors.values(), key=lambda tensor: tensor.offset)
    gaps = (one.offset + one.n_bytes for one in ordered if (one.offset + one.n_bytes) % file.alignment)
    return next(gaps, file.header_bytes - 1)
