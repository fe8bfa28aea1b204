"""How far prompts are read, and what answers took, by llama.cpp's names: answers in the making in, JSON out."""

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .answer import Answer

Json = dict[str, Any]
LOOK_SECONDS = 0.1  # how often a client that asked is told how far its prompt is read


@dataclass(frozen=True)
class Took:
    """What an answer took so far, in tokens and seconds; `n_prompt` are the prompt's tokens that the cache had not."""

    n_cached: int
    n_prompt: int = 0
    prompt_seconds: float = 0.0
    n_answer: int = 0
    answer_seconds: float = 0.0

    def as_json(self) -> Json:
        """Return `timings`: milliseconds, and rates that leave out the first token, which comes with the prompt."""
        prompt_ms, answer_ms = 1000 * self.prompt_seconds, 1000 * self.answer_seconds
        n_steps = max(self.n_answer - 1, 0)
        return {
            "cache_n": self.n_cached,
            "prompt_n": self.n_prompt,
            "prompt_ms": prompt_ms,
            "prompt_per_token_ms": prompt_ms / self.n_prompt if self.n_prompt else 0.0,
            "prompt_per_second": 1000 * self.n_prompt / prompt_ms if prompt_ms else 0.0,
            "predicted_n": self.n_answer,
            "predicted_ms": answer_ms,
            "predicted_per_token_ms": answer_ms / n_steps if n_steps else 0.0,
            "predicted_per_second": 1000 * n_steps / answer_ms if answer_ms else 0.0,
        }


def timings(answer: Answer) -> Json:
    """Return what an answer took that has begun to speak."""
    generation, times = answer.generation, answer.times
    return Took(
        generation.n_reused,
        generation.n_prompt - generation.n_reused,
        max(times.first - times.begun, 0.0),
        len(generation.tokens),
        max(times.last - times.first, 0.0),
    ).as_json()


@dataclass(frozen=True)
class Progress:
    """How far a prompt is read: tokens, those of the cache among them, and the seconds since that began."""

    answer: Answer
    n_read: int
    seconds: float = 0.0

    def as_json(self, with_timings: bool | None) -> Json:
        """Return `prompt_progress`, and `timings` if they are wanted."""
        generation = self.answer.generation
        n_cached = generation.n_reused
        found: Json = {
            "prompt_progress": {
                "total": generation.n_prompt,
                "cache": n_cached,
                "processed": self.n_read,
                "time_ms": int(1000 * self.seconds),
            }
        }
        if with_timings:
            found["timings"] = Took(n_cached, self.n_read - n_cached, self.seconds).as_json()
        return found


class Reading:
    """Tells a client that asked how far its prompts are read: at the beginning, now and then, and when they are."""

    def __init__(self, answers: Sequence[Answer], is_wanted: bool | None) -> None:
        """Look at answers, if it is wanted."""
        self._unread = {answer.index: answer for answer in answers} if is_wanted else {}
        self._told: dict[int, int] = {}

    @property
    def seconds(self) -> float | None:
        """How long to wait for tokens before the next look; None is as long as it takes."""
        return LOOK_SECONDS if self._unread else None

    def news(self, speaking: Collection[int]) -> list[Progress]:
        """Return what is new; answers that are `speaking`, by their index, have read all."""
        return [news for answer in list(self._unread.values()) for news in self._news(answer, answer.index in speaking)]

    def _news(self, answer: Answer, speaks: bool) -> Iterator[Progress]:
        generation, begun = answer.generation, answer.times.begun
        if not speaks and answer.sequence is None:
            return
        told = self._told.get(answer.index)
        n_read = generation.n_prompt if speaks else generation.n_prompt - len(generation.pending)
        if told is None:
            told = generation.n_reused
            yield Progress(answer, told)
        if n_read > told:
            seconds = (answer.times.first if speaks else time.perf_counter()) - begun
            yield Progress(answer, n_read, max(seconds, 0.0))
        self._told[answer.index] = max(told, n_read)
        if speaks:
            del self._unread[answer.index]
