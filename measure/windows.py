"""A text is cut into windows of tokens, and a model's predictions for their second halves come out, as llama.cpp does.

Source: perplexity() and kl_divergence() of tools/perplexity/perplexity.cpp: each window begins with an empty cache and,
where the model wants one, with bos in place of its first token; the tokens after its first half are scored.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..formats.errors import EngineError
from ..formats.llamacpp import llama
from ..formats.text_files import UTF16
from ..runner.engine import Engine
from ..runner.model import Model, tokenize

LEAST_CONTEXT = 8


@dataclass(frozen=True)
class Windows:
    """Tokens int32 [n_chunk, n_ctx]; those from `first` on, but for the last one, predict a token that is scored.

    `bos` takes the place of each first token, or None.
    """

    tokens: np.ndarray
    bos: int | None = None

    @property
    def n_chunk(self) -> int:
        """How many windows there are."""
        return len(self.tokens)

    @property
    def n_ctx(self) -> int:
        """Tokens of a window."""
        return self.tokens.shape[1]

    @property
    def first(self) -> int:
        """The first position whose prediction is scored."""
        return self.n_ctx // 2

    @property
    def n_scored(self) -> int:
        """Scored tokens of a window."""
        return self.n_ctx - 1 - self.first

    def targets(self, chunk: int) -> np.ndarray:
        """Return the scored tokens of a window, int32 [n_scored]."""
        return self.tokens[chunk, self.first + 1 :]

    def fed(self, chunk: int) -> np.ndarray:
        """Return the tokens of a window as the model gets them."""
        tokens = self.tokens[chunk].copy()
        if self.bos is not None:
            tokens[0] = self.bos
        return tokens


def read_strict_text(path: Path) -> str:
    """Read a text file, less its last line break, as llama.cpp's -f does. Raises EngineError for what is no text."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-16" if data.startswith(UTF16) else "utf-8")
    except UnicodeDecodeError as error:
        raise EngineError(f"{path}: is not UTF-8 text (byte {error.start}); name a text file") from None
    if "\0" in text:
        raise EngineError(f"{path}: holds zero bytes, so it is no text; name a text file")
    return text.removeprefix("\ufeff").removesuffix("\n")


def cut_windows(
    model: Model, text: str, n_ctx: int, n_chunk: int | None = None, name: str = "the text", spread: bool = False
) -> Windows:
    """Tokenize a text and cut it into windows of n_ctx tokens, at most n_chunk of them: the first ones, or spread.

    Raises EngineError for a text that is shorter than two windows, as llama.cpp refuses it.
    """
    if n_ctx < LEAST_CONTEXT:
        raise EngineError(f"windows of {n_ctx} tokens are too short; use -c {LEAST_CONTEXT} or more")
    tokens = tokenize(model, text, parse_special=False)
    if len(tokens) < 2 * n_ctx:
        raise EngineError(
            f"{name} has {len(tokens)} tokens, and windows of {n_ctx} need at least {2 * n_ctx}; give more text, or a "
            "smaller -c/--ctx-size"
        )
    found = len(tokens) // n_ctx
    n_chunk = found if n_chunk is None else min(n_chunk, found)
    windows = np.asarray(tokens[: found * n_ctx], np.int32).reshape(found, n_ctx)
    return windows_of(model, windows[np.arange(n_chunk) * found // n_chunk] if spread else windows[:n_chunk])


def windows_of(model: Model, tokens: np.ndarray) -> Windows:
    """Return windows of tokens int32 [n_chunk, n_ctx] for a model."""
    api = llama()
    bos = int(api.llama_vocab_bos(model.vocab)) if api.llama_vocab_get_add_bos(model.vocab) else None
    return Windows(tokens, bos)


def sequences_for(n_ctx: int, n_batch: int) -> int:
    """Return how many windows llama.cpp's tools decode in one batch."""
    return max(1, n_batch // n_ctx)


def scored_logits(engine: Engine, windows: Windows, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (number of a window, its logits float32 [n_scored, n_vocab], a view) from window `start` on, in order.

    As many windows go into a batch as the engine has sequences and its batch has room. Raises Cancelled after
    `engine.cancel`.
    """
    n_seq = min(len(engine.cached), sequences_for(windows.n_ctx, engine.n_batch))
    for chunk in range(start, windows.n_chunk, n_seq):
        group = range(chunk, min(chunk + n_seq, windows.n_chunk))
        engine.clear()
        if windows.n_ctx > engine.n_batch:
            yield chunk, _in_several_batches(engine, windows, chunk)
            continue
        marked = np.tile(np.arange(windows.n_ctx) >= windows.first, len(group))
        logits = engine.decode_marked([(i, windows.fed(one).tolist()) for i, one in enumerate(group)], marked)
        per_window = logits.reshape(len(group), windows.n_scored + 1, -1)
        for i, one in enumerate(group):
            yield one, per_window[i, :-1]


def _in_several_batches(engine: Engine, windows: Windows, chunk: int) -> np.ndarray:
    tokens, found = windows.fed(chunk), []
    for at in range(0, windows.n_ctx, engine.n_batch):
        part = tokens[at : at + engine.n_batch]
        marked = np.arange(at, at + len(part)) >= windows.first
        found.append(engine.decode_marked([(0, part.tolist())], marked).copy())
    return np.concatenate(found)[:-1]


def strided_logits(
    engine: Engine, tokens: Sequence[int], n_ctx: int, stride: int, n_chunk: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (logits float32 [stride, n_vocab], scored tokens [stride]) of overlapping windows, `stride` apart.

    Source: perplexity_v2() of perplexity.cpp: the last `stride` tokens of each window are scored, and no bos is put in.
    """
    if not 0 < stride < n_ctx:
        raise EngineError(f"--stride {stride}: write a number from 1 to {n_ctx - 1}, the window's tokens less one")
    found = -(-(len(tokens) - n_ctx) // stride)
    for chunk in range(found if n_chunk is None else min(n_chunk, found)):
        window = np.asarray(tokens[chunk * stride : chunk * stride + n_ctx], np.int32)
        engine.clear()
        rows = []
        for at in range(0, n_ctx, engine.n_batch):
            part = window[at : at + engine.n_batch]
            positions = np.arange(at, at + len(part))
            marked = (positions >= n_ctx - stride - 1) & (positions < n_ctx - 1)
            rows.append(engine.decode_marked([(0, part.tolist())], marked).copy())
        yield np.concatenate(rows), window[n_ctx - stride :]
