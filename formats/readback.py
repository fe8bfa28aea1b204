"""Reading a finished file back: its structure through the `gguf` package's own reader, against what was planned."""

from collections.abc import Sequence
from math import prod
from pathlib import Path

from .errors import OutputError
from .gguf_layout import TensorEntry


def check_structure(paths: Sequence[Path], entries: Sequence[TensorEntry]) -> None:
    """Demand that the files hold exactly these tensors, with these shapes, types and sizes.

    Raises OutputError naming the first tensor that differs.
    """
    from gguf import GGUFReader

    found: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for path in paths:
        try:
            reader = GGUFReader(path)
        except Exception as error:
            raise OutputError(f"{path}: what was written cannot be read back: {error}; is the disk sound?") from error
        for tensor in reader.tensors:
            shape = tuple(int(n) for n in tensor.shape)
            found[tensor.name] = (shape, int(tensor.tensor_type), int(tensor.n_bytes))
    for entry in entries:
        expected = (entry.shape, int(entry.qtype), entry.n_bytes)
        if found.pop(entry.name, None) != expected:
            raise OutputError(f"{paths[0]}: tensor {entry.name} was read back differently; is the disk sound?")
    if found:
        raise OutputError(f"{paths[0]}: unexpected tensors were read back: {', '.join(found)}")


def count_weights(entries: Sequence[TensorEntry]) -> int:
    """Return the weights of all tensors."""
    return sum(prod(entry.shape) for entry in entries)
