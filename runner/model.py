"""A GGUF file and load options in, a model that llama.cpp holds out, with its vocabulary."""

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from ..formats.errors import EngineError
from ..formats.gguf_file import GgufFile
from ..formats.llamacpp import listening, llama
from .gguf_check import check_gguf, unspelled_bytes, unspelled_characters
from .interrupt import held_interrupts
from .load_options import LoadOptions
from .load_parameters import model_parameters

FAILS = 4


class Model:
    """The one owner of a `llama_model`. Free it with `close` (or leave a `with` block) after its contexts."""

    def __init__(self, path: Path, options: LoadOptions, file: GgufFile | None = None) -> None:
        """Check the file, whose header may be given, then load it; Ctrl-C ends that too.

        Raises GgufError or EngineError with one line that says why not.
        """
        api = llama()
        self.path = path
        self.file: GgufFile = check_gguf(path, file)
        parameters, self._keep = model_parameters(self.file, options)
        use_numa(options.numa)
        complaints: list[str] = []
        self.pointer = None
        self.remarks: list[str] = []
        try:
            with (
                held_interrupts() as interrupted,
                listening(complaining(complaints)),
                listening(lambda _, text: self._remark(text)),
            ):
                # llama.cpp asks between tensors whether it is to go on
                parameters.progress_callback = api.llama_progress_callback(lambda _, __: not interrupted())
                self.pointer = api.llama_model_load_from_file(os.fsencode(path), parameters)
        except BaseException:
            self.close()
            raise
        if not self.pointer:
            raise EngineError(f"{path}: llama.cpp cannot load it: {first_reason(complaints)}")
        self.vocab = api.llama_model_get_vocab(self.pointer)
        self.n_vocab = int(api.llama_vocab_n_tokens(self.vocab))
        self.n_ctx_train = int(api.llama_model_n_ctx_train(self.pointer))
        self.unspelled = unspelled_bytes(self.file)
        self.has_vocabulary = api.llama_vocab_type(self.vocab) != api.LLAMA_VOCAB_TYPE_NONE
        self.can_rewind = not (api.llama_model_is_recurrent(self.pointer) or api.llama_model_is_hybrid(self.pointer))
        self.pieces: dict[int, bytes] = {}
        self.ends: dict[int, bool] = {}
        self.end_tokens: tuple[int, ...] | None = None

    def _remark(self, text: str) -> None:
        """Keep what llama.cpp only logs though a wish was not granted (llama_mlock of src/llama-mmap.cpp)."""
        if "failed to mlock" in text and not self.remarks:
            self.remarks.append(
                "--mlock: the system did not lock the whole model, which it may page out; allow more by ulimit -l "
                "(or LimitMEMLOCK= of systemd)"
            )

    def close(self) -> None:
        """Free the model; its contexts must be closed before."""
        if self.pointer:
            llama().llama_model_free(self.pointer)
            self.pointer = None

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def complaining(complaints: list[str]) -> Callable[[int, str], None]:
    """Return a listener of llama.cpp's log that collects what it calls an error."""
    return lambda level, text: complaints.append(text.strip()) if level == FAILS else None


def first_reason(complaints: list[str]) -> str:
    """Return what llama.cpp logged first as an error, without the names of functions in front of it."""
    reason = next((line for line in complaints if line), "it does not say why")
    while True:
        head, _, rest = reason.partition(": ")
        if not rest or (" " in head and head != "error loading model"):
            return reason
        reason = rest


@cache
def use_numa(strategy: str | None) -> None:
    """Set llama.cpp's NUMA strategy, once for the process."""
    if strategy is not None:
        api = llama()
        strategies = {
            "distribute": api.GGML_NUMA_STRATEGY_DISTRIBUTE,
            "isolate": api.GGML_NUMA_STRATEGY_ISOLATE,
            "numactl": api.GGML_NUMA_STRATEGY_NUMACTL,
        }
        api.llama_numa_init(strategies[strategy])


def tokenize(model: Model, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
    """Return the tokens of a text.

    add_special adds what the file asks for (BOS, EOS); parse_special reads "<|im_end|>" in the text as that token.
    """
    if not model.has_vocabulary:
        raise EngineError(f"{model.path}: it has no tokenizer, so it can take no text; convert it with its tokenizer")
    if model.unspelled and (strange := unspelled_characters(model.file, model.unspelled, text)):
        listed = ", ".join(map(ascii, strange[:8]))
        raise EngineError(f"{model.path}: its vocabulary has no tokens for bytes, so it cannot spell {listed}")
    data = text.encode("utf-8", "replace")
    room = len(data) + 16
    while True:
        tokens = np.empty(room, np.int32)
        pointer = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        count = llama().llama_tokenize(model.vocab, data, len(data), pointer, room, add_special, parse_special)
        if count >= 0:
            return tokens[:count].tolist()
        if -count <= room:
            raise EngineError(f"{model.path}: llama.cpp cannot tokenize a text of {len(data)} bytes")
        room = -count


def piece(model: Model, token: int) -> bytes:
    """Return the bytes that a token stands for; control tokens are empty."""
    known = model.pieces.get(token)
    if known is None:
        known = model.pieces[token] = spell(model, token, special=False)
    return known


def spell(model: Model, token: int, special: bool) -> bytes:
    """Return the bytes of a token; special ones are spelled out when `special`."""
    api = llama()
    buffer = ctypes.create_string_buffer(64)
    length = api.llama_token_to_piece(model.vocab, token, buffer, 64, 0, special)
    if length < 0:
        buffer = ctypes.create_string_buffer(-length)
        length = api.llama_token_to_piece(model.vocab, token, buffer, -length, 0, special)
    return buffer.raw[:length]


def detokenize(model: Model, tokens: list[int]) -> str:
    """Return the text of tokens, control tokens left out."""
    return b"".join(piece(model, token) for token in tokens).decode("utf-8", "replace")


def is_end(model: Model, token: int) -> bool:
    """Tell whether a token ends an answer (EOS, EOT, ...)."""
    known = model.ends.get(token)
    if known is None:
        known = model.ends[token] = bool(llama().llama_vocab_is_eog(model.vocab, token))
    return known


def end_tokens(model: Model) -> tuple[int, ...]:
    """Return all tokens that end an answer; the vocabulary is looked through once."""
    if model.end_tokens is None:
        api = llama()
        model.end_tokens = tuple(token for token in range(model.n_vocab) if api.llama_vocab_is_eog(model.vocab, token))
    return model.end_tokens


def special_text(model: Model, key: str) -> str:
    """Return how the token is spelled whose id is under a key such as `Keys.Tokenizer.BOS_ID`, or ""."""
    token = model.file.metadata.get(key)
    if not isinstance(token, int) or not 0 <= token < model.n_vocab:
        return ""
    return spell(model, token, special=True).decode("utf-8", "replace")
