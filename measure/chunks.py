"""Texts are cut into chunks of n_ctx tokens, and chunks go through an engine that is listened to, as in llama-imatrix.

Each chunk begins with an empty cache and, where the model wants one, with bos in place of its first token; as many as
a batch has room for are decoded together (compute_imatrix of tools/imatrix/imatrix.cpp).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from ..formats.errors import EngineError
from ..formats.llamacpp import llama
from ..runner.engine import Engine
from ..runner.model import Model, tokenize

LEAST_CONTEXT = 16


@dataclass(frozen=True)
class CalibrationText:
    """A text and its name; `special` reads "<|im_end|>" in it as that token."""

    name: str
    text: str
    special: bool = False


def cut_chunks(model: Model, texts: Sequence[CalibrationText], n_ctx: int) -> np.ndarray:
    """Return the whole chunks of each text, int32 [n_chunk, n_ctx], what a model gets.

    Raises EngineError for a text that is shorter than a chunk.
    """
    if n_ctx < LEAST_CONTEXT:
        raise EngineError(f"chunks of {n_ctx} tokens are too short; use -c {LEAST_CONTEXT} or more")
    found = []
    for text in texts:
        tokens = tokenize(model, text.text, parse_special=text.special)
        n_chunk = len(tokens) // n_ctx
        if not n_chunk:
            raise EngineError(
                f"{text.name}: {len(tokens)} tokens, less than a chunk of {n_ctx}; give more text, or a smaller "
                "-c/--ctx-size"
            )
        found.append(np.asarray(tokens[: n_chunk * n_ctx], np.int32).reshape(n_chunk, n_ctx))
    chunks = np.concatenate(found)
    api = llama()
    if api.llama_vocab_get_add_bos(model.vocab):
        chunks[:, 0] = api.llama_vocab_bos(model.vocab)
    return chunks


def digest(chunks: np.ndarray) -> str:
    """Return what tells these chunks from others."""
    return blake2b(f"{chunks.shape}".encode() + chunks.tobytes(), digest_size=16).hexdigest()


def chunks_at_once(engine: Engine, n_ctx: int) -> int:
    """Return how many chunks are decoded together."""
    return min(len(engine.cached), max(1, engine.n_batch // n_ctx))


def decode_chunks(engine: Engine, chunks: np.ndarray, start: int = 0) -> Iterator[int]:
    """Decode chunks from number `start` on, for what listens; yield how many are done each time, from the first.

    Every token is an output, so that the last layers are computed for all of them.
    """
    n_ctx = chunks.shape[1]
    n_seq = chunks_at_once(engine, n_ctx)
    for first in range(start, len(chunks), n_seq):
        group = chunks[first : first + n_seq]
        engine.clear()
        for at in range(0, n_ctx, engine.n_batch):
            parts = [(i, tokens[at : at + engine.n_batch].tolist()) for i, tokens in enumerate(group)]
            engine.decode_marked(parts, np.ones(sum(len(tokens) for _, tokens in parts), np.bool_))
        yield first + len(group)
    engine.clear()
