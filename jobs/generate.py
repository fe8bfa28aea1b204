"""Answering one prompt: a model and a text come in, the answer goes out piece by piece and as a Report."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runner.sampling import SamplingOptions
from ..runner.templates.chat_format import TemplateOptions
from .listener import SILENT, Listener
from .loading import DEFAULT_LOAD, LoadRequest, opened_engine
from .sources import resolve_gguf

if TYPE_CHECKING:
    from ..runner.engine import Engine
    from ..runner.generation import Piece, Speed
    from ..runner.templates.thinking import ThoughtStream


@dataclass(frozen=True)
class Request:
    """A prompt for a model: completed as it is, or with `chat` (or a `system` message) answered through its template.

    `model` is a GGUF file or a name of `catalogue`; `n_predict` -1 is no limit; `n_logprobs` of None gives none.
    """

    model: str | Path | None
    prompt: str
    catalogue: Path | None = None
    load: LoadRequest = DEFAULT_LOAD
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    template: TemplateOptions = field(default_factory=TemplateOptions)
    n_predict: int = -1
    stops: tuple[str, ...] = ()
    chat: bool = False
    system: str | None = None
    n_logprobs: int | None = None


@dataclass(frozen=True)
class Prepared:
    """A request whose model was found."""

    request: Request
    path: Path


@dataclass(frozen=True)
class Report:
    """An answer, made of `pieces`; `finish` is why it ended: "cancelled", else see runner.generation.Piece."""

    model: Path
    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    finish: str
    seed: int
    speed: "Speed"
    pieces: "tuple[Piece, ...]"
    n_ctx: int
    n_logprobs: int | None = None

    @property
    def text(self) -> str:
        """The whole answer, without thoughts that were told from it."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def reasoning_content(self) -> str:
        """The thoughts before the answer."""
        return "".join(piece.thought for piece in self.pieces)

    def as_json(self) -> dict[str, Any]:
        """Return what `generate --json` prints; docs/generate.md describes it."""
        report: dict[str, Any] = {
            "model": str(self.model),
            "text": self.text,
            "finish": self.finish,
            "seed": self.seed,
            "prompt_tokens": list(self.prompt_tokens),
            "tokens": list(self.tokens),
            "speed": speed_report(self.speed),
        }
        if self.reasoning_content:
            report["reasoning_content"] = self.reasoning_content
        if self.n_logprobs is not None:
            logprobs = (piece.logprob for piece in self.pieces if piece.logprob)
            report["logprobs"] = [
                {
                    "token": one.token,
                    "logprob": one.logprob,
                    "top": [{"token": token, "logprob": value} for token, value in one.top],
                }
                for one in logprobs
            ]
        return report


def prepare(request: Request) -> Prepared:
    """Find the model. Raises CatalogueError and GgufError."""
    return Prepared(request, resolve_gguf(request.model, request.catalogue))


def run(prepared: Prepared, listener: Listener = SILENT, on_piece: "Callable[[Piece], object] | None" = None) -> Report:
    """Load the model and answer; `on_piece` is called with each piece as it comes. Ctrl-C ends the answer.

    Raises GgufError and EngineError.
    """
    with opened_engine(prepared.path, prepared.request.load, listener) as engine:
        return answer(engine, prepared.request, listener, on_piece)


def answer(
    engine: "Engine",
    request: Request,
    listener: Listener = SILENT,
    on_piece: "Callable[[Piece], object] | None" = None,
) -> Report:
    """Answer a request on an engine that is open already; see `run`."""
    from ..runner.engine import Cancelled
    from ..runner.generation import begin, pieces_of, separated, speed
    from ..runner.ineffective import ineffective
    from ..runner.interrupt import on_interrupt
    from ..runner.recommended import with_recommended
    from ..runner.templates.endings import stops_of

    tokens, thoughts, settings = prompt_of(engine, request, listener)
    found = stops_of(engine.model, request.stops)
    settings |= {"stops": found.texts, "stop_tokens": found.tokens}
    settings |= {"n_predict": request.n_predict, "n_logprobs": request.n_logprobs}
    recommended = with_recommended(request.sampling, engine.model.file.metadata)
    if recommended.note:
        listener.say(recommended.note)
    for remark in ineffective(recommended.sampling):
        listener.warn(remark)
    generation = begin(engine, tokens, recommended.sampling, **settings)
    pieces: list[Piece] = []
    finish = None
    with on_interrupt(engine.cancel):
        try:
            for piece in separated(pieces_of(engine, generation), thoughts):
                pieces.append(piece)
                if on_piece:
                    on_piece(piece)
        except Cancelled:
            finish = "cancelled"
    return Report(
        model=engine.model.path,
        prompt_tokens=tuple(tokens),
        tokens=tuple(generation.tokens),
        finish=finish or generation.finish or "",
        seed=generation.sampler.seed,
        speed=speed(generation),
        pieces=tuple(pieces),
        n_ctx=engine.n_ctx,
        n_logprobs=request.n_logprobs,
    )


def prompt_of(
    engine: "Engine", request: Request, listener: Listener = SILENT
) -> "tuple[list[int], ThoughtStream, dict[str, Any]]":
    """Return the prompt's tokens, raw or through the chat template, how thoughts are told, and settings for `begin`."""
    from ..runner.templates.chat_format import chat_format, continued
    from ..runner.templates.message import Message
    from ..runner.templates.thinking import ThoughtStream

    if not request.chat and request.system is None:
        return continued(engine.model, request.prompt), ThoughtStream(None), {}
    chat = chat_format(engine.model, request.template)
    if not chat.template.chosen:
        listener.warn("the model has no chat template; ChatML is used")
    messages = [Message("system", request.system)] if request.system else []
    rendered = chat.render([*messages, Message("user", request.prompt)])
    for remark in (*rendered.notes, *rendered.lost):
        listener.warn(remark)
    if chat.endings.note:
        listener.say(chat.endings.note)
    return chat.tokens(rendered), chat.thoughts(rendered), {"endings": chat.endings, "spelled": chat.spelled}


def speed_report(speed: "Speed") -> dict[str, Any]:
    """Return what an answer took, for --json; seconds, tokens, tokens a second."""
    return {
        "n_prompt": speed.n_prompt,
        "n_reused": speed.n_reused,
        "n_generated": speed.n_generated,
        "prompt_seconds": round(speed.prompt_seconds, 4),
        "generation_seconds": round(speed.generation_seconds, 4),
        "prompt_per_second": round(speed.prompt_per_second, 2),
        "generated_per_second": round(speed.generated_per_second, 2),
    }
