"""A chat in the making: messages in and answers out, with what the engine's cache already knows reused."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from .conversation import prompt_of
from .engine import Cancelled, Engine, shared_prefix
from .generation import Generation, Piece, Speed, advance, begin, read_prompt, separated, speed, whole_batch
from .sampling import SamplingOptions
from .templates.chat_format import ChatFormat, chat_format
from .templates.endings import stops_of
from .templates.message import Message
from .templates.thinking import ThoughtStream

LEAST_ANSWER = 512


@dataclass
class Session:
    """A conversation with one engine.

    `dropped` counts the messages that the last prompt had no room for; they stay in `messages`. `remarks` is what the
    template made of the last prompt. `on_prompt(done, total)` hears how much of a prompt is read.

    All that the cache shares with a prompt is reused. What llama.cpp computed token by token differs by rounding from
    what it computes at once, so an answer depends on what was said before; with `exact` only whole batches of earlier
    prompts are reused, and the same seed gives the same answer to the same messages.
    """

    engine: Engine
    sampling: SamplingOptions
    n_predict: int = -1
    stops: Sequence[str] = ()
    system: str = ""
    messages: list[Message] = field(default_factory=list)
    dropped: int = 0
    last: Generation | None = None
    chat: ChatFormat | None = None
    remarks: tuple[str, ...] = ()
    on_prompt: Callable[[int, int], None] | None = None
    exact: bool = False
    _left_out: int = 0
    _whole: int = 0

    @property
    def format(self) -> ChatFormat:
        """How the model is talked to: as its file says, unless something else was given."""
        if self.chat is None:
            self.chat = chat_format(self.engine.model)
        return self.chat

    def ask(self, text: str) -> Iterator[Piece]:
        """Add a user's message and yield the answer; see `answer`."""
        self.messages.append(Message("user", text))
        return self.answer()

    def regenerate(self) -> Iterator[Piece] | None:
        """Forget the last answer and yield another one, drawn anew; None when there is no question yet."""
        while self.messages and self.messages[-1].role not in ("user", "tool"):
            self.messages.pop()
        return self.answer(replace(self.sampling, seed=None)) if self.messages else None

    def answer(self, sampling: SamplingOptions | None = None) -> Iterator[Piece]:
        """Yield the answer to the last message. Raises Cancelled after the engine's `cancel`.

        What was said before an interruption stays in the history; a question without any answer is taken back.
        Thoughts come as the pieces' `thought`.
        """
        text = thought = ""
        thoughts: ThoughtStream | None = None
        try:
            self.last, thoughts = self._begin(sampling or self.sampling)
            read_prompt(self.engine, self.last, self.on_prompt)
            while self.last.finish is None:
                for piece in separated(advance(self.engine, [self.last]), thoughts):
                    text, thought = text + piece.text, thought + piece.thought
                    yield piece
        except Cancelled:
            if self.last and thoughts:
                first, rest = thoughts.push(self.last.stream.flush()), thoughts.flush()
                text, thought = text + first.said + rest.said, thought + first.thought + rest.thought
            raise
        finally:
            self._remember(text, thought)

    def speed(self) -> Speed | None:
        """Return what the last answer took."""
        return speed(self.last) if self.last else None

    def reset(self) -> None:
        """Forget the conversation, not the system message."""
        self.messages.clear()
        self.last, self._left_out = None, 0

    def everything(self) -> list[Message]:
        """Return all messages, the system message first, those too that no longer fit into the context."""
        return ([Message("system", self.system)] if self.system else []) + self.messages

    def replace_by(self, messages: Sequence[Message]) -> None:
        """Take over a saved conversation, with its system message if it begins with one."""
        self.reset()
        self.system, rest = "", list(messages)
        if rest and rest[0].role == "system" and isinstance(rest[0].content, str):
            self.system = rest.pop(0).text
        self.messages = rest

    def _begin(self, sampling: SamplingOptions) -> tuple[Generation, ThoughtStream]:
        engine, chat = self.engine, self.format
        n_answer = min(self.n_predict if self.n_predict > 0 else LEAST_ANSWER, engine.n_ctx // 4)
        self.last = None
        opening = self.everything()[: len(self.everything()) - len(self.messages)]
        prompt = prompt_of(chat, [*opening, *self.messages[self._left_out :]], engine.n_ctx, n_answer)
        self.dropped, self.remarks = prompt.n_dropped, prompt.remarks
        self._left_out += prompt.n_dropped
        if self.exact:
            self._forget_what_differs(prompt.tokens)
        stops = stops_of(engine.model, self.stops)
        generation = begin(
            engine,
            prompt.tokens,
            sampling,
            n_predict=self.n_predict,
            stops=stops.texts,
            stop_tokens=stops.tokens,
            endings=chat.endings,
            spelled=chat.spelled,
        )
        unit, whole = whole_batch(engine), min(self._whole, generation.n_reused)
        self._whole = (len(prompt.tokens) if whole == generation.n_reused else whole) // unit * unit
        return generation, prompt.thoughts

    def _forget_what_differs(self, tokens: Sequence[int]) -> None:
        """Drop from the cache what would be computed otherwise if the prompt was read from its beginning."""
        engine = self.engine
        shared = min(shared_prefix(engine.cached[0], tokens[:-1]), self._whole)
        kept = shared // whole_batch(engine) * whole_batch(engine)
        engine.reuse(0, tokens[: kept + 1])

    def _remember(self, text: str, thought: str) -> None:
        """Add an answer to the history; take back a question that got none."""
        if self.format.options.reasoning_format == "deepseek-legacy" and thought and self.format.tags:
            text = f"{self.format.tags.start}{thought}{self.format.tags.end}{text}"
        if text or thought:
            self.messages.append(Message("assistant", text, reasoning_content=thought.strip() or None))
        elif self.messages and self.messages[-1].role == "user":
            self.messages.pop()
