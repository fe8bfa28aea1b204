"""An engine in, tokens a second out, measured as llama-bench does: random tokens, an empty cache, no sampling."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..formats.llamacpp import llama
from ..runner.engine import Engine, Feed
from ..runner.model import Model


@dataclass(frozen=True)
class Work:
    """What to measure: a prompt of n_prompt tokens, or n_gen tokens one by one, behind n_depth tokens."""

    n_prompt: int
    n_gen: int
    n_depth: int = 0

    @property
    def name(self) -> str:
        """llama-bench's name: pp512, tg128, pp512+tg128, each with the depth behind "@ d"."""
        parts = [f"pp{self.n_prompt}"] * bool(self.n_prompt) + [f"tg{self.n_gen}"] * bool(self.n_gen)
        return "+".join(parts) + (f" @ d{self.n_depth}" if self.n_depth else "")

    @property
    def n_tokens(self) -> int:
        """Tokens that are timed."""
        return self.n_prompt + self.n_gen


@dataclass(frozen=True)
class Measurement:
    """The seconds that each repetition of some work took."""

    work: Work
    seconds: tuple[float, ...]

    @property
    def rates(self) -> tuple[float, ...]:
        """Tokens a second of each repetition."""
        return tuple(self.work.n_tokens / each for each in self.seconds)

    @property
    def rate(self) -> float:
        """Mean of the rates."""
        return statistics.fmean(self.rates)

    @property
    def deviation(self) -> float:
        """Standard deviation of the rates; 0 for one repetition."""
        return statistics.stdev(self.rates) if len(self.rates) > 1 else 0.0


class NoChoice:
    """Stands where a sampler does: asks for the logits, as llama-bench does, and leaves them unread."""

    def sample(self, context: Any, row: int) -> int:
        """Wait for the logits and choose nothing."""
        llama().llama_synchronize(context)
        return 0


def measure(engine: Engine, work: Work, repetitions: int, advance: Callable[[], object] = lambda: None) -> Measurement:
    """Time some work after a short run that warms caches up; `advance` is called after each repetition."""
    random = np.random.default_rng(0)
    run(engine, Work(min(work.n_prompt, engine.n_batch), min(work.n_gen, 1)), random)
    seconds = []
    for _ in range(repetitions):
        seconds.append(run(engine, work, random))
        advance()
    engine.forget(0)
    return Measurement(work, tuple(seconds))


def run(engine: Engine, work: Work, random: np.random.Generator) -> float:
    """Do the work once with random tokens and return the seconds it took."""
    tokens = random.integers(0, engine.model.n_vocab, work.n_depth + work.n_tokens).tolist()
    engine.forget(0)
    nothing: Any = NoChoice()
    if work.n_depth:
        engine.step([Feed(0, tokens[work.n_tokens :], nothing)])
    started = time.perf_counter()
    if work.n_prompt:
        engine.step([Feed(0, tokens[: work.n_prompt], nothing)])
    for token in tokens[work.n_prompt : work.n_tokens]:
        engine.step([Feed(0, [token], nothing)])
    return time.perf_counter() - started


def describe(model: Model) -> tuple[str, int, int]:
    """Return llama.cpp's description of a model ("llama 8x7B Q4_K - Medium"), its bytes and its parameters."""
    import ctypes

    api = llama()
    text = ctypes.create_string_buffer(128)
    api.llama_model_desc(model.pointer, text, len(text))
    size, count = api.llama_model_size(model.pointer), api.llama_model_n_params(model.pointer)
    return text.value.decode("utf-8", "replace"), int(size), int(count)
