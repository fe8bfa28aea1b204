"""A GGUF file in, its header out, or one line about what is wrong: llama.cpp ends the process on some of it."""

from pathlib import Path

from ..formats.gguf_file import GgufFile, read_gguf


def check_gguf(path: Path) -> GgufFile:
    """Read and check a file before llama.cpp sees it. Raises GgufError."""
    return read_gguf(path)
