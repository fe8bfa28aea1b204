"""Contexts and continuations as tokens in, how likely the model finds each continuation out.

What texts have in common is computed once: a batch is a tree of tokens, whose trunk several sequences share in the
cache, and what one batch shares with the next stays there. Four endings of a question cost one reading of it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..formats.errors import EngineError
from ..runner.engine import Engine, Feed, Shared, shared_prefix

# Tokens of a batch that are worth waiting for: more would only make every token look over more of the cache.
BATCH_TOKENS = 512
# A shorter common beginning is read again with every batch rather than kept.
LEAST_STEM = 32


@dataclass(frozen=True)
class Scored:
    """A continuation: the sum of its tokens' natural log probabilities, and whether each was the likeliest there."""

    logprob: float
    is_greedy: bool


@dataclass(frozen=True)
class Text:
    """What is read, and from which token on predictions count; `target` is the token after the last one read."""

    tokens: tuple[int, ...]
    first: int
    target: int

    @property
    def targets(self) -> tuple[int, ...]:
        """The tokens of the continuation."""
        return (*self.tokens[self.first + 1 :], self.target)


def text_of(context: Sequence[int], continuation: Sequence[int], longest: int) -> Text:
    """Return what is to be read for a continuation; a context that is too long loses its beginning.

    Raises EngineError for an empty continuation or context, and a continuation of more than `longest` tokens.
    """
    if not context or not continuation:
        raise EngineError("a continuation and what it continues must have a token each")
    if len(continuation) > longest:
        raise EngineError(
            f"a continuation has {len(continuation)} tokens, the context {longest}; use a larger -c/--ctx-size"
        )
    tokens = (*context, *continuation)[-(longest + 1) :]
    return Text(tokens[:-1], len(tokens) - 1 - len(continuation), tokens[-1])


def score(engine: Engine, texts: Sequence[Text], on_done: Callable[[int], object] = lambda _: None) -> list[Scored]:
    """Return the scores of texts, in their order; `on_done` hears how many more are done.

    Sequence 0 holds what batches share, the others the texts of a batch. Raises Cancelled after the engine's `cancel`,
    and EngineError for logits that are no numbers.
    """
    order = sorted(range(len(texts)), key=lambda number: texts[number].tokens)
    found: dict[int, Scored] = {}
    for pack in packs([texts[number].tokens for number in order], len(engine.cached), engine.model.can_rewind):
        numbers = order[pack.start : pack.stop]
        found.update(zip(numbers, _score_pack(engine, [texts[number] for number in numbers]), strict=True))
        on_done(len(numbers))
    engine.forget(0)
    return [found[number] for number in range(len(texts))]


def packs(texts: Sequence[tuple[int, ...]], n_seq: int, can_share: bool = True) -> Iterator[range]:
    """Cut sorted texts into stretches with few enough tokens beyond their common beginning, and different texts."""
    start = 0
    while start < len(texts):
        stop, common, n_distinct = start + 1, len(texts[start]), 1
        n_tokens = common
        while can_share and stop < len(texts):
            same = shared_prefix(texts[stop - 1], texts[stop])
            added = len(texts[stop]) - same
            is_new = texts[stop] != texts[stop - 1]
            if n_tokens + added - min(common, same) > BATCH_TOKENS or n_distinct + is_new >= n_seq:
                break
            stop, common, n_distinct = stop + 1, min(common, same), n_distinct + is_new
            n_tokens += added
        yield range(start, stop)
        start = stop


@dataclass(frozen=True)
class Branch:
    """Texts `low` to `high` of a sorted list have these tokens in common, from position `start` on."""

    low: int
    high: int
    start: int
    tokens: tuple[int, ...]


def tree(texts: Sequence[tuple[int, ...]], low: int, high: int, start: int) -> Iterator[Branch]:
    """Yield the branches of sorted texts that differ, trunk first, leaving out the first `start` tokens of each."""
    end = shared_prefix(texts[low], texts[high - 1]) if high - low > 1 else len(texts[low])
    if end > start:
        yield Branch(low, high, start, texts[low][start:end])
    if len(texts[low]) == end:
        low += 1
    while low < high:
        stop = low + 1
        while stop < high and texts[stop][end] == texts[low][end]:
            stop += 1
        yield from tree(texts, low, stop, end)
        low = stop


def _score_pack(engine: Engine, texts: Sequence[Text]) -> list[Scored]:
    """Score sorted texts that fit into the cache together."""
    distinct = sorted({text.tokens for text in texts})
    stem = _keep_stem(engine, distinct, min(text.first for text in texts))
    engine.copy(0, range(1, len(distinct) + 1))
    logprobs, greedy = [0.0] * len(texts), [True] * len(texts)
    try:
        branches = list(tree(distinct, 0, len(distinct), stem))
        for questions, logits in _answers(engine, branches, _questions(texts, distinct, branches)):
            highest = logits.max(axis=1)
            totals = np.log(np.exp(logits - highest[:, None]).sum(axis=1, dtype=np.float64)) + highest
            if not np.isfinite(totals).all():
                raise EngineError(
                    f"{engine.model.path}: the model computes logits that are no numbers (NaN or infinity)"
                )
            for row, asked in enumerate(questions):
                for number, target in asked:
                    logprobs[number] += float(logits[row, target]) - float(totals[row])
                    greedy[number] &= int(logits[row].argmax()) == target
    finally:
        for sequence in range(1, len(distinct) + 1):
            engine.forget(sequence)
    return [Scored(*pair) for pair in zip(logprobs, greedy, strict=True)]


def _keep_stem(engine: Engine, distinct: Sequence[tuple[int, ...]], first: int) -> int:
    """Let sequence 0 hold what all texts begin with, before any prediction that counts; return its length."""
    length = min(shared_prefix(distinct[0], distinct[-1]), first) if engine.model.can_rewind else 0
    if length < LEAST_STEM:
        engine.forget(0)
        return 0
    stem = distinct[0][:length]
    held = engine.reuse(0, [*stem, -1])
    if held < length:
        engine.step([Feed(0, stem[held:])])
    return length


def _questions(
    texts: Sequence[Text], distinct: Sequence[tuple[int, ...]], branches: Sequence[Branch]
) -> list[list[tuple[int, int]]]:
    """Return for each token of all branches who asks what comes next: (number of a text, its target)."""
    places = {tokens: number for number, tokens in enumerate(distinct)}
    askers: dict[int, list[int]] = {}
    for number, text in enumerate(texts):
        askers.setdefault(places[text.tokens], []).append(number)
    found = []
    for branch in branches:
        inside = [number for place in range(branch.low, branch.high) for number in askers[place]]
        for at in range(branch.start, branch.start + len(branch.tokens)):
            found.append([(n, texts[n].targets[at - texts[n].first]) for n in inside if at >= texts[n].first])
    return found


def _answers(
    engine: Engine, branches: Sequence[Branch], questions: Sequence[list[tuple[int, int]]]
) -> Iterator[tuple[list[list[tuple[int, int]]], np.ndarray]]:
    """Decode branches in as few batches as fit; yield the questions of each and the logits that answer them."""
    pieces = [
        Shared(1 + branch.low, branch.high - branch.low, branch.tokens[at : at + engine.n_batch])
        for branch in branches
        for at in range(0, len(branch.tokens), engine.n_batch)
    ]
    done = 0
    while pieces:
        batch, room = [], engine.n_batch
        while pieces and len(pieces[0].tokens) <= room:
            room -= len(pieces[0].tokens)
            batch.append(pieces.pop(0))
        asked = questions[done : done + engine.n_batch - room]
        done += len(asked)
        logits = engine.decode_shared(batch, np.array([bool(each) for each in asked]))
        yield [each for each in asked if each], logits
