"""A prompt and sampling options in, an answer out piece by piece, for one sequence or many in one batch."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..formats.errors import EngineError
from .engine import Choice, Engine, Feed, TokenLogprob
from .model import Model, is_end, piece, spell
from .sampling import Sampler, SamplingOptions
from .streaming import TextStream
from .templates.endings import Endings
from .templates.thinking import Heard, ThoughtStream


class Piece(NamedTuple):
    """What one step adds to an answer: `text` may be empty while a character or a stop string is unfinished.

    `finish` is None until the last piece: "end" (the model ended), "stop" (a stop string), "length" (n_predict
    tokens) or "context" (the context is full). A session tells `thought`, what the model thinks, from `text`.
    """

    token: int
    text: str
    logprob: TokenLogprob | None = None
    finish: str | None = None
    thought: str = ""


@dataclass
class Generation:
    """An answer in the making; `advance` moves it on. Create it with `begin`."""

    sequence: int
    sampler: Sampler
    stream: TextStream
    n_predict: int
    n_logprobs: int | None
    pending: list[int]
    n_prompt: int
    n_reused: int
    ends: frozenset[int] = frozenset()
    end_texts: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()
    spelled: frozenset[int] = frozenset()
    tokens: list[int] = field(default_factory=list)
    finish: str | None = None
    started: float = 0.0
    first_token: float = 0.0
    latest_token: float = 0.0


@dataclass(frozen=True)
class Speed:
    """What an answer took: tokens, seconds and tokens a second of the prompt's new part and of the answer."""

    n_prompt: int
    n_reused: int
    n_generated: int
    prompt_seconds: float
    generation_seconds: float

    @property
    def prompt_per_second(self) -> float:
        """Prompt tokens decoded (not reused) a second."""
        return (self.n_prompt - self.n_reused) / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def generated_per_second(self) -> float:
        """Tokens a second after the first one, which belongs to the prompt's time."""
        return (self.n_generated - 1) / self.generation_seconds if self.generation_seconds else 0.0


def begin(
    engine: Engine,
    prompt: Sequence[int],
    sampling: SamplingOptions,
    *,
    sequence: int = 0,
    n_predict: int = -1,
    stops: Sequence[str] = (),
    stop_tokens: frozenset[int] = frozenset(),
    endings: Endings | None = None,
    spelled: frozenset[int] = frozenset(),
    n_logprobs: int | None = None,
) -> Generation:
    """Prepare an answer: reuse what the cache shares with the prompt, build the sampler. Nothing is decoded yet.

    n_predict -1 goes on until the model ends or the context is full. `stops` and `stop_tokens` end it as the user
    wants, `endings` as the model's template does (not with `ignore_eos`); `spelled` tokens are shown though they are
    control tokens. Raises EngineError for an empty prompt, one that does not fit into the context, and impossible
    sampling options.
    """
    if not prompt:
        raise EngineError("the prompt is empty, and this model's tokenizer adds no token of its own; give it a prompt")
    if len(prompt) >= engine.n_ctx:
        raise EngineError(
            f"the prompt has {len(prompt)} tokens, the context {engine.n_ctx}; use a larger -c/--ctx-size"
        )
    outside = next((token for token in prompt if not 0 <= token < engine.model.n_vocab), None)
    if outside is not None:
        raise EngineError(f"token {outside} is not in the vocabulary of {engine.model.n_vocab}")
    generation = unread(
        engine.model,
        prompt,
        sampling,
        n_predict=n_predict,
        stops=stops,
        stop_tokens=stop_tokens,
        endings=endings,
        spelled=spelled,
        n_logprobs=n_logprobs,
    )
    generation.sequence, generation.n_reused = sequence, engine.reuse(sequence, prompt)
    del generation.pending[: generation.n_reused]
    generation.finish = None if n_predict else "length"
    return generation


def unread(
    model: Model,
    prompt: Sequence[int],
    sampling: SamplingOptions,
    *,
    n_predict: int = -1,
    stops: Sequence[str] = (),
    stop_tokens: frozenset[int] = frozenset(),
    endings: Endings | None = None,
    spelled: frozenset[int] = frozenset(),
    n_logprobs: int | None = None,
) -> Generation:
    """Return an answer without a sequence (-1), all of its prompt pending; see `begin`. Any thread may call it."""
    sampler = Sampler(model, sampling)
    sampler.accept_prompt(prompt[-max(sampling.repeat_last_n, sampling.dry_penalty_last_n, 1) :])
    endings = Endings() if endings is None or sampling.ignore_eos else endings
    return Generation(
        -1,
        sampler,
        TextStream((*stops, *endings.texts)),
        n_predict,
        n_logprobs,
        list(prompt),
        len(prompt),
        0,
        ends=endings.tokens,
        end_texts=endings.texts,
        stop_tokens=stop_tokens,
        spelled=spelled,
    )


def read_prompt(engine: Engine, generation: Generation, on_prompt: Callable[[int, int], None] | None) -> None:
    """Decode all of a prompt but its last piece, so that `on_prompt(done, total)` hears of each micro-batch.

    The pieces are those that llama.cpp computes at once anyway: nothing is computed otherwise than without.
    """
    if on_prompt is None:
        return
    total = len(generation.pending)
    generation.started = generation.started or time.perf_counter()
    unit = whole_batch(engine)
    while len(generation.pending) > unit:
        on_prompt(total - len(generation.pending), total)
        before = len(engine.cached[generation.sequence])
        try:
            engine.step([Feed(generation.sequence, generation.pending[:unit])])
        finally:
            del generation.pending[: len(engine.cached[generation.sequence]) - before]
    if total > unit:
        on_prompt(total, total)


def whole_batch(engine: Engine) -> int:
    """Return how many tokens llama.cpp computes at once, so that a prompt cut there is computed as if it was whole."""
    return engine.n_ubatch if engine.n_batch % engine.n_ubatch == 0 else engine.n_batch


def advance(engine: Engine, generations: Sequence[Generation]) -> list[Piece]:
    """Add one token to each unfinished answer, all in one batch; return their pieces in order.

    After Cancelled every answer can still go on: what was not decoded stays pending.
    """
    running = [generation for generation in generations if generation.finish is None]
    feeds = []
    for each in running:
        each.started = each.started or time.perf_counter()
        feeds.append(Feed(each.sequence, each.pending, each.sampler, each.n_logprobs))
    before = [len(engine.cached[each.sequence]) for each in running]
    pieces: list[Piece] = []  # feeds end in the order in which they are given
    try:
        for number, choice in engine.choices(feeds):
            pieces.append(take(engine.model, running[number], choice, engine.room()))
    except EngineError:
        for generation, held in zip(running[len(pieces) :], before[len(pieces) :], strict=True):
            del generation.pending[: len(engine.cached[generation.sequence]) - held]
        raise
    return pieces


def pieces_of(engine: Engine, generation: Generation) -> Iterator[Piece]:
    """Yield what is left of an answer, piece by piece."""
    while generation.finish is None:
        yield from advance(engine, [generation])


def separated(pieces: Iterable[Piece], thoughts: ThoughtStream) -> Iterator[Piece]:
    """Yield an answer's pieces with their text parted into `text` and `thought`."""
    for each in pieces:
        heard = thoughts.push(each.text)
        rest = thoughts.flush() if each.finish else Heard()
        yield each._replace(text=heard.said + rest.said, thought=heard.thought + rest.thought)


def generate(
    engine: Engine,
    prompt: Sequence[int],
    sampling: SamplingOptions,
    *,
    sequence: int = 0,
    n_predict: int = -1,
    stops: Sequence[str] = (),
    n_logprobs: int | None = None,
) -> Iterator[Piece]:
    """Yield an answer piece by piece; see `begin` for the options and errors."""
    return pieces_of(
        engine,
        begin(engine, prompt, sampling, sequence=sequence, n_predict=n_predict, stops=stops, n_logprobs=n_logprobs),
    )


def speed(generation: Generation) -> Speed:
    """Return what an answer took so far."""
    return Speed(
        generation.n_prompt,
        generation.n_reused,
        len(generation.tokens),
        max(generation.first_token - generation.started, 0.0),
        generation.latest_token - generation.first_token,
    )


def take(model: Model, generation: Generation, choice: Choice, room: int) -> Piece:
    """Book a chosen token and decide whether the answer ends with it; `room` is how many tokens still fit."""
    token = choice.token
    generation.latest_token = time.perf_counter()
    generation.first_token = generation.first_token or generation.latest_token
    generation.tokens.append(token)
    generation.pending = [token]
    if is_end(model, token) or token in generation.ends:
        generation.finish, text = "end", ""
    elif token in generation.stop_tokens:
        generation.finish, text = "stop", ""
    else:
        spelled = spell(model, token, special=True) if token in generation.spelled else None
        text = generation.stream.push(piece(model, token) if spelled is None else spelled)
        if generation.stream.stopped is not None:
            generation.finish = "end" if generation.stream.stopped in generation.end_texts else "stop"
        elif 0 <= generation.n_predict <= len(generation.tokens):
            generation.finish = "length"
        elif room < 1:
            generation.finish = "context"
    if generation.finish:
        text += generation.stream.flush()
        generation.sampler.close()
    return Piece(token, text, choice.logprob, generation.finish)
