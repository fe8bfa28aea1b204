"""Tiny GGUF models and importance matrices with numbers from plain integer arithmetic: the same bytes everywhere."""

import struct
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

from .gguf_headers import Shape, hyper_parameters, tensors_of

TINY = Shape(n_layer=3, n_expert=4, n_head=4, n_head_kv=2, n_embd=256, n_ff=256, n_vocab=64)


def numbers(count: int, seed: int) -> np.ndarray:
    """Return float32 numbers in [-1, 1), heavier in the middle, from a linear congruential generator."""
    state = (np.arange(count, dtype=np.uint64) + np.uint64(1 + 7919 * seed)) * np.uint64(6364136223846793005)
    state = (state ^ (state >> np.uint64(29))) * np.uint64(11400714819323198485)
    even = (state >> np.uint64(40)).astype(np.float64) / 2**23 - 1
    return (even * np.abs(even)).astype(np.float32)


def write_tiny(path: Path, shape: Shape = TINY, qtype: str = "F32") -> Path:
    """Write a model of this shape with weights; `qtype` is F32, F16 or BF16."""
    kind = gguf.GGMLQuantizationType[qtype]
    writer = gguf.GGUFWriter(path, shape.family)
    hyper_parameters(writer, shape)
    for seed, tensor in enumerate(tensors_of(shape, kind)):
        weights = numbers(int(np.prod(tensor.shape)), seed).reshape(tensor.shape[::-1])
        writer.add_tensor(tensor.name, gguf.quantize(weights, tensor.qtype), raw_dtype=tensor.qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_imatrix(
    path: Path,
    sums: Mapping[str, np.ndarray],
    counts: Mapping[str, np.ndarray],
    leave_out: str | None = None,
) -> Path:
    """Write llama.cpp's GGUF importance matrix: sums [n_expert, row_length] and counts [n_expert] per tensor."""
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    fields = {
        "imatrix.datasets": lambda key: writer.add_array(key, ["calibration.txt", "other.txt"]),
        "imatrix.chunk_count": lambda key: writer.add_uint32(key, 7),
        "imatrix.chunk_size": lambda key: writer.add_uint32(key, 512),
    }
    for key, add in fields.items():
        if key != leave_out:
            add(key)
    for name, values in sums.items():
        writer.add_tensor(f"{name}.in_sum2", np.atleast_2d(values).astype(np.float32))
    for name, values in counts.items():
        writer.add_tensor(f"{name}.counts", np.asarray(values, np.float32).reshape(-1, 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_legacy_imatrix(
    path: Path, entries: Mapping[str, tuple[int, np.ndarray]], trailer: tuple[int, str] | None = (9, "legacy.txt")
) -> Path:
    """Write the legacy format: per tensor the number of calls and the sums of means."""
    data = struct.pack("<i", len(entries))
    for name, (n_call, values) in entries.items():
        flat = np.asarray(values, "<f4").reshape(-1)
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", n_call, flat.size) + flat.tobytes()
    if trailer:
        n_chunk, dataset = trailer
        data += struct.pack("<ii", n_chunk, len(dataset)) + dataset.encode()
    path.write_bytes(data)
    return path


def tiny_statistics(shape: Shape = TINY) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return sums and counts for every tensor in the layers of a tiny model; the last expert saw nothing."""
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, np.ndarray] = {}
    for seed, tensor in enumerate(tensors_of(shape)):
        if not tensor.name.startswith("blk.") or len(tensor.shape) < 2 or "_gate_inp" in tensor.name:
            continue
        n_expert = tensor.shape[2] if len(tensor.shape) > 2 else 1
        seen = np.array([100 + 37 * i for i in range(n_expert)], np.float32)
        values = np.square(numbers(n_expert * tensor.shape[0], 1000 + seed)).reshape(n_expert, -1) * seen[:, None]
        if n_expert > 1:
            seen[-1], values[-1] = 0, 0
        sums[tensor.name], counts[tensor.name] = values, seen
    return sums, counts


def write_tiny_imatrices(folder: Path, shape: Shape = TINY) -> tuple[Path, Path]:
    """Write the tiny model's importance matrix in both formats: imatrix.gguf and imatrix.dat."""
    sums, counts = tiny_statistics(shape)
    new = write_imatrix(folder / "imatrix.gguf", sums, counts)
    entries = {name: (7 + i, sums[name] / 31) for i, name in enumerate(sums)}
    return new, write_legacy_imatrix(folder / "imatrix.dat", entries)
