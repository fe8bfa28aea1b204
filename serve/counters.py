"""What a server has done since it began, counted where it happens; /metrics shows it."""

from dataclasses import dataclass

from .answer import Answer


@dataclass
class Counters:
    """Sums over all answers and all batches; seconds, tokens, counts. Written by the thread that computes."""

    prompt_tokens: int = 0
    prompt_tokens_cached: int = 0
    prompt_seconds: float = 0.0
    predicted_tokens: int = 0
    predicted_seconds: float = 0.0
    n_decode: int = 0
    n_busy: int = 0
    n_tokens_max: int = 0
    n_answers: int = 0
    failed: int = 0
    cancelled: int = 0
    preempted: int = 0

    def decoded(self, n_sequences: int) -> None:
        """Count a batch."""
        self.n_decode += 1
        self.n_busy += n_sequences

    def answered(self, answer: Answer) -> None:
        """Count an answer that ended."""
        generation, times = answer.generation, answer.times
        self.n_answers += 1
        self.prompt_tokens += generation.n_prompt - generation.n_reused
        self.prompt_tokens_cached += generation.n_reused
        self.prompt_seconds += max(times.first - times.begun, 0.0)
        self.predicted_tokens += len(generation.tokens)
        self.predicted_seconds += max(times.last - times.first, 0.0)
        self.n_tokens_max = max(self.n_tokens_max, generation.n_prompt + len(generation.tokens))
