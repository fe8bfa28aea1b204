"""A loaded model at work: prompts and settings in, answers out, by a scheduler that owns its context."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gguf.constants import Keys

from ..formats.errors import EngineError, MoeGgufError
from ..formats.gguf_file import GgufFile, read_gguf
from ..jobs.listener import SILENT, Listener
from ..jobs.loading import DEFAULT_LOAD, LoadRequest, load_model
from ..models.summary import Summary, summarize_gguf
from ..runner.engine import Engine, Feed
from ..runner.generation import unread
from ..runner.model import Model, end_tokens
from ..runner.recommended import with_recommended
from ..runner.routing_tap import RoutingTap
from ..runner.sampling import SamplingOptions
from ..runner.templates.chat_format import ChatFormat, TemplateOptions, chat_format
from ..runner.templates.endings import Endings, stops_of
from ..runner.templates.message import user
from ..runner.templates.tool_format import tool_format_of
from .answer import Answer, Event, Inbox, hand_out
from .errors import ApiError
from .scheduler import Limits, Scheduler

# Sequences beside those that are answered at once: they keep prompts and conversations for later.
KEPT_SEQUENCES = 12
MOST_SEQUENCES = 256  # LLAMA_MAX_SEQ


@dataclass(frozen=True)
class ModelOptions:
    """How models are loaded and what their answers are made with, unless a request says otherwise."""

    load: LoadRequest = DEFAULT_LOAD
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    template: TemplateOptions = field(default_factory=TemplateOptions)
    limits: Limits = field(default_factory=Limits)
    n_predict: int = -1
    seconds: float = 600.0


@dataclass(frozen=True)
class Settings:
    """How one prompt is to be answered; n_predict -1 is until the model ends."""

    sampling: SamplingOptions
    n_predict: int = -1
    stops: tuple[str, ...] = ()
    endings: Endings | None = None
    spelled: frozenset[int] = frozenset()
    n_logprobs: int | None = None
    asks_experts: bool = False
    only_expert: int | None = None
    seconds: float | None = None

    @property
    def asks_router(self) -> bool:
        """Whether the routers are to be heard, or told where to send."""
        return self.asks_experts or self.only_expert is not None


class Service:
    """One model that answers. Make it with `opened`; `close` frees the model."""

    def __init__(self, name: str, model: Model, engine: Engine, tap: RoutingTap | None, options: ModelOptions) -> None:
        """Begin to work; answers arrive in the event loop that runs when they are submitted."""
        self.name = name
        self.model = model
        self.engine = engine
        self.options = options
        self.summary: Summary = summarize_gguf(model.file)
        self.chat: ChatFormat = chat_format(model, options.template)
        self.tool_format = tool_format_of(self.chat.tool_template, self.chat.special)
        self.sampling = with_recommended(options.sampling, model.file.metadata).sampling
        self.has_router_tap = tap is not None
        self.loaded = int(time.time())
        self.pins = 0  # who needs it loaded; kept by the event loop
        self.last_used = time.monotonic()
        self.embedding = threading.Lock()
        self._embedder: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.scheduler = Scheduler(engine, options.limits, self._deliver, tap)
        self.scheduler.start()
        # Nothing may be computed by another thread: each that does leaves OpenMP a pool of its own, and with more
        # threads in pools than processors llama.cpp's no longer spin at barriers but sleep, at half of the speed.
        self.scheduler.call(self._warm_up).result()

    @property
    def hidden(self) -> tuple[tuple[str, str], ...]:
        """What no client may read of this machine, and what stands for it."""
        return ((str(self.model.path), self.name), (str(self.model.path.parent), ""))

    def enter(self, answers: Sequence[Answer]) -> None:
        """Let answers wait for their turn, until `leave`; call both in the event loop. Raises QueueFull and Stopped."""
        self._loop = asyncio.get_running_loop()
        self.scheduler.submit(answers)
        self.pins += 1

    def made(self, prompts: Sequence[list[int]], settings: Sequence[Settings], client: str = "") -> list[Answer]:
        """Return answers that have not begun; any thread may make them."""
        inbox = Inbox()
        return [
            self._answer(*each, inbox, number, client)
            for number, each in enumerate(zip(prompts, settings, strict=True))
        ]

    def leave(self, answers: Sequence[Answer]) -> None:
        """Say that nobody waits for answers that were entered; those that have not ended are dropped."""
        self.pins -= 1
        self.last_used = time.monotonic()
        for answer in answers:
            if answer.generation.finish is None and answer.failure is None:
                self.scheduler.cancel(answer)

    def close(self, seconds: float = 0.0) -> None:
        """Let answers end for so long, then free the model."""
        self.scheduler.stop(seconds)
        if self._embedder is not None:
            self._embedder.close()
        self.engine.close()
        self.model.close()

    def embedder(self, make: Callable[[Model, int, int], Any]) -> Any:
        """Return the context that makes embeddings, made once; for the thread that computes."""
        if self._embedder is None:
            self._embedder = make(self.model, self.engine.n_ctx_seq, self.engine.n_threads)
        return self._embedder

    def _warm_up(self) -> None:
        """Do once what the first request would wait for: pages of weights, the template, the vocabulary's ends."""
        end_tokens(self.model)
        with suppress(EngineError):
            self.chat.render([user("Hello")])
        self.engine.step([Feed(0, [0])])
        self.engine.forget(0)

    def _deliver(self, items: list[tuple[Answer, Event | None]]) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(hand_out, items)

    def _answer(self, prompt: list[int], settings: Settings, inbox: Inbox, index: int, client: str) -> Answer:
        self._check(prompt, settings)
        sampling = settings.sampling
        stops = stops_of(self.model, settings.stops)
        generation = unread(
            self.model,
            prompt,
            sampling,
            n_predict=settings.n_predict,
            stops=stops.texts,
            stop_tokens=stops.tokens,
            endings=settings.endings,
            spelled=settings.spelled,
            n_logprobs=settings.n_logprobs,
        )
        seconds = self.options.seconds if settings.seconds is None else min(settings.seconds, self.options.seconds)
        deadline = time.perf_counter() + seconds
        return Answer(
            prompt,
            generation,
            inbox,
            index,
            client,
            settings.only_expert,
            settings.asks_experts,
            is_exact=sampling.has_seed or (settings.asks_router and not self.engine.kv_unified),
            deadline=deadline,
        )

    def _check(self, prompt: list[int], settings: Settings) -> None:
        n_ctx, n_vocab, n_expert = self.engine.n_ctx_seq, self.model.n_vocab, self.summary.n_expert
        if not prompt:
            raise ApiError(400, "the prompt is empty", "prompt")
        if len(prompt) >= n_ctx:
            message = f"the prompt has {len(prompt)} tokens, the context {n_ctx}; shorten it"
            code = "context_length_exceeded"
            raise ApiError(400, message, "messages", code, n_prompt_tokens=len(prompt), n_ctx=n_ctx)
        if outside := [token for token in prompt if not 0 <= token < n_vocab]:
            raise ApiError(400, f"token {outside[0]} is not in the vocabulary of {n_vocab}", "prompt")
        if settings.asks_router and not self.has_router_tap:
            raise ApiError(400, f"{self.name} is no mixture of experts", "x_experts")
        if settings.only_expert is not None and settings.only_expert >= n_expert:
            raise ApiError(400, f"there are the experts 0 to {n_expert - 1}", "x_only_expert")


def opened(path: Path, options: ModelOptions, name: str | None = None, listener: Listener = SILENT) -> Service:
    """Load a GGUF file and begin to serve it. Raises GgufError and EngineError."""
    file = read_gguf(path)
    kept = KEPT_SEQUENCES if options.load.kv_unified else 0  # of caches of their own each would take a share
    n_sequences = min(options.limits.n_parallel + kept, MOST_SEQUENCES)
    tap = routing_tap(file, options.load)
    request = replace(options.load, n_seq_max=n_sequences)
    model, engine = load_model(path, request, listener, tap.on_eval if tap else None)
    try:
        if tap:
            tap.measure(engine.n_batch, engine.n_ubatch)
        return Service(name or served_name(file, path), model, engine, tap, options)
    except MoeGgufError:
        engine.close()
        model.close()
        raise


def routing_tap(file: GgufFile, load: LoadRequest) -> RoutingTap | None:
    """Return what hears a mixture's routers, None for a dense model."""
    n_expert = file.hyper(Keys.LLM.EXPERT_COUNT, 0)
    n_used = load.n_expert_used or file.hyper(Keys.LLM.EXPERT_USED_COUNT, 0)
    n_layer = file.hyper(Keys.LLM.BLOCK_COUNT, 0)
    if not all(isinstance(each, int) and each > 0 for each in (n_expert, n_used, n_layer)):
        return None
    return RoutingTap(n_layer, n_expert, n_used)


def served_name(file: GgufFile, path: Path) -> str:
    """Return what clients call a model: its file's name without the suffix."""
    return path.stem
