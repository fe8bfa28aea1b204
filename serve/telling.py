"""What the engine made in, what is said to a client out: text, thoughts, and the tokens that belong to them."""

from dataclasses import dataclass, field
from typing import Any

from ..runner.generation import Piece
from ..runner.model import Model, piece
from ..runner.routing_tap import Routing
from ..runner.templates.message import ToolCall
from ..runner.templates.thinking import Heard, ThoughtStream
from ..runner.templates.tool_format import CallStream
from .answer import Event

Json = dict[str, Any]
# runner.generation's reasons in OpenAI's words
FINISH = {"end": "stop", "stop": "stop", "length": "length", "context": "length"}


@dataclass
class Delta:
    """What became certain: text, thought, the entries of the tokens that they are made of, why the answer ends."""

    text: str = ""
    thought: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[Json] = field(default_factory=list)
    experts: list[Json] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    finish: str | None = None

    def __bool__(self) -> bool:
        return bool(self.text or self.thought or self.calls or self.finish)


class Teller:
    """Tells one answer: holds back entries of tokens until the text comes that they belong to."""

    def __init__(
        self,
        model: Model,
        thoughts: ThoughtStream,
        experts: bool | str | None = None,
        calls: CallStream | None = None,
    ) -> None:
        """`thoughts` and `calls` part an answer; `experts` is what a request's x_experts says."""
        self.n_calls = 0
        self._model = model
        self._calls = calls or CallStream(None)
        self._thoughts = thoughts
        self._experts = experts
        self._held = Delta()

    def told(self, events: list[Event]) -> Delta:
        """Take events and return what became certain by them."""
        delta = self._held
        for event in events:
            self._hear(event, delta)
        if delta:
            self._held = Delta()
            return delta
        return Delta()

    def _hear(self, event: Event, delta: Delta) -> None:
        one = event.piece
        heard = self._thoughts.push(one.text)
        self._say(heard, delta)
        if one.finish is not None:
            self._say(self._thoughts.flush(), delta)
            text, calls = self._calls.flush()
            delta.text += text
            delta.calls += calls
            delta.finish = one.finish
        if one.token >= 0 and one.finish != "end":  # the token that ends an answer says nothing
            delta.tokens.append(one.token)
            if one.logprob is not None:
                delta.logprobs.append(logprob_entry(self._model, one))
            if event.routing is not None:
                delta.experts.append(expert_entry(self._model, one.token, event.routing, self._experts))

    def _say(self, heard: Heard, delta: Delta) -> None:
        text, calls = self._calls.push(heard.said) if heard.said else ("", [])
        delta.text += text
        delta.thought += heard.thought
        delta.calls += calls


def logprob_entry(model: Model, one: Piece) -> Json:
    """Return a token's log probability as OpenAI's chat API spells it."""
    assert one.logprob is not None
    top = [_token(model, token) | {"logprob": value} for token, value in one.logprob.top]
    return _token(model, one.token) | {"logprob": one.logprob.logprob, "top_logprobs": top}


def expert_entry(model: Model, token: int, routing: Routing, form: bool | str | None) -> Json:
    """Return the experts that made a token, the most important first; with "layers", those of each layer too."""
    shares = routing.shares()
    entry: Json = {
        "token": piece(model, token).decode("utf-8", "replace"),
        "experts": [expert for expert, _ in shares],
        "weights": [round(share, 4) for _, share in shares],
    }
    if form == "layers":
        entry["layers"] = [
            [[expert, round(weight, 4)] for expert, weight in zip(experts, weights, strict=True) if weight > 0]
            for experts, weights in zip(routing.experts.tolist(), routing.weights.tolist(), strict=True)
        ]
    return entry


def _token(model: Model, token: int) -> Json:
    data = piece(model, token)
    return {"token": data.decode("utf-8", "replace"), "bytes": list(data), "id": token}
