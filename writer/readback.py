"""Reading a finished file back: its structure, through two readers, against what was planned."""

from collections.abc import Sequence
from math import prod
from pathlib import Path

from ..formats.errors import GgufError, OutputError
from ..formats.gguf_file import read_shard
from ..formats.gguf_layout import TensorEntry


def check_structure(paths: Sequence[Path], entries: Sequence[TensorEntry]) -> None:
    """Demand that our own reader finds exactly these tensors in the files, with these shapes, types and sizes.

    Raises OutputError naming the first tensor that differs.
    """
    found = {}
    for path in paths:
        try:
            tensors = read_shard(path).tensors.values()
        except GgufError as error:
            raise OutputError(f"what was written cannot be read back: {error}; is the disk sound?") from error
        found |= {tensor.name: (tensor.shape, int(tensor.qtype), tensor.n_bytes) for tensor in tensors}
    _compare(paths, entries, found)


def check_with_gguf_reader(paths: Sequence[Path], entries: Sequence[TensorEntry]) -> None:
    """Demand the same of the `gguf` package's reader, which knows nothing of ours; slow for large vocabularies."""
    from gguf import GGUFReader

    found = {}
    for path in paths:
        try:
            tensors = GGUFReader(path).tensors
        except Exception as error:
            raise OutputError(f"{path}: what was written cannot be read back: {error}; is the disk sound?") from error
        found |= {
            tensor.name: (tuple(int(n) for n in tensor.shape), int(tensor.tensor_type), int(tensor.n_bytes))
            for tensor in tensors
        }
    _compare(paths, entries, found)


def _compare(
    paths: Sequence[Path], entries: Sequence[TensorEntry], found: dict[str, tuple[tuple[int, ...], int, int]]
) -> None:
    for entry in entries:
        if found.pop(entry.name, None) != (entry.shape, int(entry.qtype), entry.n_bytes):
            raise OutputError(f"{paths[0]}: tensor {entry.name} was read back differently; is the disk sound?")
    if found:
        raise OutputError(f"{paths[0]}: unexpected tensors were read back: {', '.join(found)}")


def count_weights(entries: Sequence[TensorEntry]) -> int:
    """Return the weights of all tensors."""
    return sum(prod(entry.shape) for entry in entries)
