"""What goes into the next batch: a token of every answer, and behind them stretches of prompts that are being read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..runner.engine import Part
from ..runner.routing_tap import RoutingTap
from .answer import Answer

# How long a step may take that reads prompts while answers stream, in seconds.
LONGEST_STEP = 0.2
LEAST_STRETCH = 16
UNIT = 64  # tokens that are read at once of a prompt whose answer must not depend on what else is asked
FIRST_GUESS = 200.0  # prompt tokens a second, before they were measured


class Stretch(NamedTuple):
    """A part of a batch and whose it is."""

    answer: Answer
    part: Part


@dataclass
class Pace:
    """How fast prompts are read, in tokens a second: a running mean of the steps that read some."""

    per_second: float = FIRST_GUESS

    def measured(self, n_tokens: int, seconds: float) -> None:
        """Take in a step."""
        if n_tokens >= LEAST_STRETCH and seconds > 0:
            self.per_second += 0.3 * (n_tokens / seconds - self.per_second)

    def stretch(self, most: int) -> int:
        """Return how many prompt tokens fit into the longest step."""
        return max(LEAST_STRETCH, min(most, int(self.per_second * LONGEST_STEP)))


def stretches_of(answers: Sequence[Answer], pace: Pace, n_ubatch: int) -> list[Stretch]:
    """Return the next batch, which llama.cpp computes at once (n_ubatch tokens).

    Answers go on first. Prompts share the rest: the one that came first gets at least half, so that short ones
    cannot hold it off for ever, and then those with the least left.
    """
    chosen = [stretch(answer, 1) for answer in answers if not answer.is_reading or answer.is_exact]
    if len(chosen) == len(answers):
        return chosen
    reading = [answer for answer in answers if answer.is_reading and not answer.is_exact]
    room = max(1, (pace.stretch(n_ubatch) if chosen else n_ubatch) - len(chosen))
    first, *others = reading
    rest = sum(len(each.generation.pending) for each in others)
    share = max(room - rest, -(-room // 2))
    for answer in (first, *sorted(others, key=lambda each: len(each.generation.pending))):
        n_tokens = min(len(answer.generation.pending), share if answer is first else room)
        if n_tokens:
            chosen.append(stretch(answer, n_tokens))
            room -= n_tokens
    return chosen


def unit_of(answer: Answer, n_ubatch: int) -> list[Stretch]:
    """Return the next unit of a prompt, or what is left of it, as a batch.

    llama.cpp computes a token alone to the same bits whatever its neighbours are, but not a stretch of a prompt: its
    flash attention takes the rows of a batch in tiles. What was answered before is read token by token, as it was made.
    """
    n_left = len(answer.generation.pending) - len(answer.generation.tokens)
    return [stretch(answer, min(UNIT, n_ubatch, n_left))]


def stretch(answer: Answer, n_tokens: int) -> Stretch:
    """Return the next n_tokens of an answer; the last of them samples."""
    generation = answer.generation
    is_last = n_tokens == len(generation.pending)
    tokens = generation.pending if is_last else generation.pending[:n_tokens]
    sampler = generation.sampler if is_last else None
    return Stretch(answer, Part(0, generation.sequence, tokens, sampler, generation.n_logprobs))


def listens(tap: RoutingTap | None, stretches: Sequence[Stretch]) -> bool:
    """Let the tap hear the next batch if somebody asked for experts or for one expert only; tell whether it does."""
    if tap is None or not any(each.answer.asks_experts or each.answer.only_expert is not None for each in stretches):
        return False
    outputs: list[int] = []
    wanted: list[int] = []
    forced: list[tuple[int, int, int]] = []
    start = 0
    for answer, part in stretches:
        stop = start + len(part.tokens)
        if part.sampler is not None:
            outputs.append(stop - 1)
            if answer.asks_experts:
                wanted.append(stop - 1)
        if answer.only_expert is not None:
            forced.append((start, stop, answer.only_expert))
        start = stop
    tap.listen(start, outputs, wanted, forced)
    return True
