"""A conversation with a model: how to talk comes in, an open Session goes out."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..runner.sampling import SamplingOptions
from ..runner.templates.chat_format import TemplateOptions
from .listener import SILENT, Listener
from .loading import DEFAULT_LOAD, LoadRequest, opened_engine
from .sources import resolve_gguf

if TYPE_CHECKING:
    from ..runner.session import Session


@dataclass(frozen=True)
class Request:
    """A model to talk to and how: `model` is a GGUF file or a name of `catalogue`; `n_predict` -1 is no limit."""

    model: str | Path | None
    catalogue: Path | None = None
    load: LoadRequest = DEFAULT_LOAD
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    template: TemplateOptions = field(default_factory=TemplateOptions)
    n_predict: int = -1
    stops: tuple[str, ...] = ()
    system: str = ""
    exact: bool = False


@dataclass(frozen=True)
class Prepared:
    """A request whose model was found."""

    request: Request
    path: Path


def prepare(request: Request) -> Prepared:
    """Find the model. Raises CatalogueError and GgufError."""
    return Prepared(request, resolve_gguf(request.model, request.catalogue))


@contextmanager
def opened_session(prepared: Prepared, listener: Listener = SILENT) -> "Iterator[Session]":
    """Load the model and open a conversation with it; both are closed in the end. Raises GgufError and EngineError."""
    from ..runner.ineffective import ineffective
    from ..runner.recommended import with_recommended
    from ..runner.session import Session
    from ..runner.templates.chat_format import chat_format

    request = prepared.request
    with opened_engine(prepared.path, request.load, listener) as engine:
        chat = chat_format(engine.model, request.template)
        if not chat.template.chosen:
            listener.warn("the model has no chat template; ChatML is used, and it may answer strangely")
        if chat.endings.note:
            listener.say(f"({chat.endings.note})")
        recommended = with_recommended(request.sampling, engine.model.file.metadata)
        if recommended.note:
            listener.say(f"({recommended.note})")
        for remark in ineffective(recommended.sampling):
            listener.warn(remark)
        session = Session(engine, recommended.sampling, request.n_predict, request.stops, request.system, chat=chat)
        session.exact = request.exact
        yield session
