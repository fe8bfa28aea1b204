"""A chat in the making: messages in and answers out, with what the engine's cache already knows reused."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from .conversation import Message, prompt_of
from .engine import Cancelled, Engine
from .generation import Generation, Piece, Speed, advance, begin, speed
from .sampling import SamplingOptions

LEAST_ANSWER = 512


@dataclass
class Session:
    """A conversation with one engine; `dropped` counts the messages that the last prompt had no room for."""

    engine: Engine
    sampling: SamplingOptions
    n_predict: int = -1
    stops: Sequence[str] = ()
    system: str = ""
    messages: list[Message] = field(default_factory=list)
    dropped: int = 0
    last: Generation | None = None

    def ask(self, text: str) -> Iterator[Piece]:
        """Add a user's message and yield the answer; see `answer`."""
        self.messages.append({"role": "user", "content": text})
        return self.answer()

    def regenerate(self) -> Iterator[Piece] | None:
        """Forget the last answer and yield another one, drawn anew; None when there is no question yet."""
        while self.messages and self.messages[-1]["role"] != "user":
            self.messages.pop()
        return self.answer(replace(self.sampling, seed=None)) if self.messages else None

    def answer(self, sampling: SamplingOptions | None = None) -> Iterator[Piece]:
        """Yield the answer to the last message. Raises Cancelled after the engine's `cancel`.

        What was said before an interruption stays in the history; a question without any answer is taken back.
        """
        text = ""
        try:
            self.last = self._begin(sampling or self.sampling)
            while self.last.finish is None:
                for piece in advance(self.engine, [self.last]):
                    text += piece.text
                    yield piece
        except Cancelled:
            if self.last:
                text += self.last.stream.flush()
            raise
        finally:
            if text:
                self.messages.append({"role": "assistant", "content": text})
            elif self.messages and self.messages[-1]["role"] == "user":
                self.messages.pop()

    def speed(self) -> Speed | None:
        """Return what the last answer took."""
        return speed(self.last) if self.last else None

    def reset(self) -> None:
        """Forget the conversation, not the system message."""
        self.messages.clear()
        self.last = None

    def everything(self) -> list[Message]:
        """Return all messages, the system message first."""
        return ([{"role": "system", "content": self.system}] if self.system else []) + self.messages

    def replace_by(self, messages: Sequence[Message]) -> None:
        """Take over a saved conversation, with its system message if it has one."""
        self.reset()
        self.system = "\n".join(each["content"] for each in messages if each["role"] == "system")
        self.messages = [dict(each) for each in messages if each["role"] != "system"]

    def _begin(self, sampling: SamplingOptions) -> Generation:
        n_ctx = self.engine.n_ctx
        n_answer = min(self.n_predict if self.n_predict > 0 else LEAST_ANSWER, n_ctx // 4)
        self.last = None
        prompt = prompt_of(self.engine.model, self.everything(), n_ctx, n_answer)
        self.dropped = prompt.n_dropped
        self.messages = [message for message in prompt.messages if message["role"] != "system"]
        return begin(self.engine, prompt.tokens, sampling, n_predict=self.n_predict, stops=self.stops)
