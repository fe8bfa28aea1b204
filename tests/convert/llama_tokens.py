"""What llama.cpp itself makes of a Vocabulary: a GGUF file with nothing else is written, loaded and asked."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gguf import GGUFWriter
from moe_gguf.convert.vocabulary.vocabulary import Vocabulary
from moe_gguf.formats.llamacpp import llama


def write_vocabulary(vocabulary: Vocabulary, path: Path) -> None:
    """Write a GGUF file that holds the vocabulary and no tensor."""
    writer = GGUFWriter(path, "llama")
    for key, value, kind in vocabulary.fields():
        writer.add_key_value(key, value, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


@contextmanager
def loaded(path: Path) -> Iterator[Any]:
    """Load a file's vocabulary in llama.cpp."""
    api = llama()
    parameters = api.llama_model_default_params()
    parameters.vocab_only = True
    model = api.llama_model_load_from_file(str(path).encode(), parameters)
    assert model, f"llama.cpp cannot load {path}"
    try:
        yield api.llama_model_get_vocab(model)
    finally:
        api.llama_model_free(model)


def tokenize(vocab: Any, text: str, *, add_special: bool = False) -> list[int]:
    """Return llama.cpp's ids for a text, control tokens recognized."""
    api = llama()
    data = text.encode("utf-8")
    room = len(data) + 16
    ids = (ctypes.c_int32 * room)()
    n = api.llama_tokenize(vocab, data, len(data), ids, room, add_special, True)
    assert n >= 0
    return list(ids[:n])
