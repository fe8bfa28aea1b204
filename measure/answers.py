"""Greedy answers of a base and its variants to the same prompts, and where they part."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

from ..runner.engine import Engine
from ..runner.generation import generate
from ..runner.model import detokenize
from ..runner.sampling import SamplingOptions
from ..runner.templates.chat_format import chat_format, continued
from ..runner.templates.message import Message

N_TOP = 20


@dataclass(frozen=True)
class Step:
    """A chosen token, its probability, and those of the likeliest tokens at its place."""

    token: int
    probability: float
    others: dict[int, float]


@dataclass(frozen=True)
class Answer:
    """An answer to a prompt, token by token."""

    prompt: str
    text: str
    steps: tuple[Step, ...]
    prefixes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return prompt and text."""
        return {"prompt": self.prompt, "text": self.text}


@dataclass(frozen=True)
class Divergent:
    """A variant's answer beside the base's: `at` is the first token that differs, None where none does.

    `gap` is how much likelier the variant finds its own token there than the base's; `same` is the text until there.
    """

    answer: Answer
    at: int | None
    same: str
    gap: float | None

    def as_json(self) -> dict[str, Any]:
        """Return the answer and where it parts from the base's."""
        return self.answer.as_json() | {"same_until": self.at, "probability_gap": self.gap}


def greedy_answers(engine: Engine, prompts: Sequence[str], n_predict: int) -> tuple[Answer, ...]:
    """Answer prompts with the likeliest tokens, through the chat template where the model has one."""
    return tuple(_answer(engine, prompt, n_predict) for prompt in prompts)


def _answer(engine: Engine, prompt: str, n_predict: int) -> Answer:
    chat = chat_format(engine.model)
    engine.clear()
    if chat.template.chosen:
        tokens = chat.tokens(chat.render([Message("user", prompt)]))
    else:
        tokens = continued(engine.model, prompt)
    steps, texts = [], []
    for piece in generate(engine, tokens, SamplingOptions(temp=0.0), n_predict=n_predict, n_logprobs=N_TOP):
        texts.append(piece.text)
        if piece.logprob:
            others = {token: exp(value) for token, value in piece.logprob.top}
            steps.append(Step(piece.token, exp(piece.logprob.logprob), others))
    prefixes = tuple(
        detokenize(engine.model, [step.token for step in steps[:count]]) for count in range(len(steps) + 1)
    )
    engine.clear()
    return Answer(prompt, "".join(texts), tuple(steps), prefixes)


def first_difference(base: Answer, ours: Answer) -> Divergent:
    """Find where an answer parts from the base's."""
    pairs = zip(base.steps, ours.steps, strict=False)
    at = next((index for index, (one, other) in enumerate(pairs) if one.token != other.token), None)
    if at is None and len(base.steps) != len(ours.steps):
        at = min(len(base.steps), len(ours.steps))
    if at is None:
        return Divergent(ours, None, ours.text, None)
    gap = None
    if at < len(ours.steps) and at < len(base.steps):
        step = ours.steps[at]
        gap = step.probability - step.others.get(base.steps[at].token, 0.0)
    return Divergent(ours, at, ours.prefixes[min(at, len(ours.prefixes) - 1)], gap)
