"""The perplexity of a model on a text, by llama.cpp's definition and to its digits."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..formats.errors import EngineError
from ..measure.divergence import Perplexity, perplexity_of
from ..measure.windows import cut_windows, read_strict_text, scored_logits, strided_logits
from .listener import SILENT, Listener
from .loading import DEFAULT_LOAD, LoadRequest, opened_engine
from .scoring import going_on, measuring
from .sources import resolve_gguf

if TYPE_CHECKING:
    from ..runner.engine import Engine


@dataclass(frozen=True)
class Request:
    """A GGUF file or a name of `catalogue`, and a text file.

    `n_ctx` is the tokens of a window; `n_chunk` None takes all windows; with `stride` windows overlap, and the last
    `stride` tokens of each are scored.
    """

    model: str | Path | None
    text: Path
    catalogue: Path | None = None
    n_ctx: int = 512
    n_chunk: int | None = None
    stride: int | None = None
    load: LoadRequest = DEFAULT_LOAD


@dataclass(frozen=True)
class Prepared:
    """A model that was found and a text that was read."""

    request: Request
    path: Path
    text: str


@dataclass(frozen=True)
class Report:
    """The final estimate, and prompt tokens a second."""

    perplexity: Perplexity
    tokens_per_second: float

    def as_json(self) -> dict[str, Any]:
        """Return what `perplexity --json` prints (docs/measure.md)."""
        return self.perplexity.as_json()


def prepare(request: Request) -> Prepared:
    """Find the model and read the text. Raises CatalogueError, GgufError, and EngineError for what is no text."""
    path = resolve_gguf(request.model, request.catalogue)
    if request.stride is not None and not 0 < request.stride < request.n_ctx:
        raise EngineError(f"--stride {request.stride}: write a number from 1 to {request.n_ctx - 1}")
    return Prepared(request, path, read_strict_text(request.text))


def run(prepared: Prepared, listener: Listener = SILENT) -> Report:
    """Read the text with the model. Raises EngineError: the text is too short, or a prediction is no number."""
    from ..runner.interrupt import on_interrupt

    request = prepared.request
    load = measuring(request.load, request.n_ctx)
    with opened_engine(prepared.path, load, listener) as engine, on_interrupt(engine.cancel), going_on():
        started = time.monotonic()
        losses = _strided(engine, prepared, listener) if request.stride else _windows(engine, prepared, listener)
        seconds = time.monotonic() - started
    n_read = sum(map(len, losses)) if request.stride else len(losses) * request.n_ctx
    return Report(perplexity_of(np.concatenate(losses), len(losses)), n_read / seconds)


def _windows(engine: "Engine", prepared: Prepared, listener: Listener) -> list[np.ndarray]:
    from ..measure import distributions
    from ..measure.trouble import demand_finite

    request, found = prepared.request, []
    windows = cut_windows(engine.model, prepared.text, request.n_ctx, request.n_chunk, str(request.text))
    with listener.bar(windows.n_chunk, "perplexity", " chunks") as bar:
        for chunk, logits in scored_logits(engine, windows):
            losses = np.empty(windows.n_scored)
            distributions.in_threads(distributions.losses, logits, windows.targets(chunk), losses)
            demand_finite(engine, losses, windows, chunk)
            found.append(losses)
            bar.update(1)
    return found


def _strided(engine: "Engine", prepared: Prepared, listener: Listener) -> list[np.ndarray]:
    from ..measure import distributions
    from ..runner.model import tokenize

    request, found = prepared.request, []
    assert request.stride is not None
    tokens = tokenize(engine.model, prepared.text, parse_special=False)
    if len(tokens) < 2 * request.n_ctx:
        raise EngineError(f"{request.text} has {len(tokens)} tokens, at least {2 * request.n_ctx} are needed")
    total = min(-(-(len(tokens) - request.n_ctx) // request.stride), request.n_chunk or len(tokens))
    with listener.bar(total, "perplexity", " windows") as bar:
        for logits, targets in strided_logits(engine, tokens, request.n_ctx, request.stride, request.n_chunk):
            losses = np.empty(len(targets))
            distributions.in_threads(distributions.losses, logits, targets, losses)
            if not np.isfinite(losses).all():
                raise EngineError(f"{engine.model.path}: logits of window {len(found)} are not finite")
            found.append(losses)
            bar.update(1)
    return found
