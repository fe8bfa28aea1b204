"""The sequences of a context: what each holds, whose it is, and which one a prompt is read into.

A sequence keeps what it holds when its answer has ended: the next turn of the same conversation goes on from there,
and another prompt that begins in the same way copies the beginning, which the cache holds once. Who is idle moves out
of the cache into memory (see parked.py), one after each step, and comes back when it is wanted.
"""

from ..runner.engine import Engine, shared_prefix
from .answer import Answer
from .batching import UNIT
from .parked import Parked, Parking

# A beginning that another answer is just reading is waited for when it is this many tokens longer than what is there.
WORTH_WAITING = 32
# Moving a sequence back takes less time than reading so many tokens.
WORTH_RESTORING = 4
# So many tokens may be idle in the cache: llama.cpp computes with 256 cells at least.
IDLE_TOKENS = 128


class Sequences:
    """Owners and contents of the sequences of an engine; for the thread that computes."""

    def __init__(self, engine: Engine, n_active: int, parked_bytes: int = 0) -> None:
        """Let `n_active` of the engine's sequences be answered at once; the others keep what was read.

        What is idle moves into at most parked_bytes of memory; 0 leaves it in the cache.
        """
        self.engine = engine
        self.n_active = n_active
        self.owners: list[Answer | None] = [None] * len(engine.cached)
        self._routes: list[int | None] = [None] * len(engine.cached)
        self._units = [0] * len(engine.cached)  # tokens at the beginning that were read in units
        self._used = [0] * len(engine.cached)
        self._tick = 0
        self._parking = Parking(parked_bytes)

    @property
    def active(self) -> list[Answer]:
        """The answers that have a sequence, in the order in which they got it."""
        found = [answer for answer in self.owners if answer is not None]
        return sorted(found, key=lambda answer: answer.times.begun)

    def has_place(self) -> bool:
        """Whether another answer may begin."""
        return sum(owner is not None for owner in self.owners) < self.n_active

    def place(self, answer: Answer) -> None:
        """Give an answer a sequence, with as much of its prompt as any sequence holds already."""
        self._bring_back(answer)
        numbers, wanted = range(len(self.owners)), answer.whole[:-1]
        alike = [number for number in numbers if self._routes[number] == answer.only_expert]
        held = {number: self._usable(answer, number, wanted) for number in alike}
        source = max(alike, key=lambda number: (held[number], self.owners[number] is None), default=None)
        n_shared = held[source] if source is not None else 0
        reading = {
            number: whole_units(answer, shared_prefix(owner.prompt, wanted))
            for number in alike
            if (owner := self.owners[number]) is not None and owner.is_reading and owner.is_exact >= answer.is_exact
        }
        awaited = max(reading, key=lambda number: reading[number], default=None)
        if awaited is not None and reading[awaited] >= n_shared + WORTH_WAITING:
            answer.waits_for = (awaited, reading[awaited])
        free = self._free()
        goes_on = source in free and 2 * n_shared >= len(self.engine.cached[source])
        target = source if goes_on and source is not None else min(free, key=self._worth)
        if target != source and not answer.waits_for:
            self._inherit(source, target, n_shared)
        self.owners[target], answer.sequence = answer, target
        self._routes[target] = answer.only_expert
        self._begin(answer)

    def catch_up(self, answer: Answer) -> None:
        """Copy what an answer waited for, once it is read; stop to wait when it will not be."""
        if answer.waits_for is None or answer.sequence is None:
            return
        source, n_wanted = answer.waits_for
        owner = self.owners[source]
        n_held = self._units[source] if answer.is_exact else len(self.engine.cached[source])
        wanted = answer.whole[:-1]
        still_alike = owner is not None and shared_prefix(owner.prompt, wanted) >= n_wanted
        if n_held < n_wanted and still_alike:
            return
        answer.waits_for = None
        n_shared = self._usable(answer, source, wanted)
        if n_shared > len(self.engine.cached[answer.sequence]) and self._routes[source] == answer.only_expert:
            self._inherit(source, answer.sequence, n_shared)
            self._begin(answer)

    def release(self, answer: Answer) -> None:
        """Take an answer's sequence away; what it holds stays until the place is needed."""
        if answer.sequence is not None:
            self._tick += 1
            self._used[answer.sequence] = self._tick
            self.owners[answer.sequence] = None
            answer.sequence = None

    def empty_oldest(self) -> bool:
        """Move out the sequence that was used longest ago and belongs to nobody; tell whether there was one."""
        if not (idle := self._idle()):
            return False
        self._park(idle[0])
        return True

    def clear_away(self) -> bool:
        """Move one idle sequence out of the cache, if many tokens are idle and nobody waits for a first token.

        Tell whether there was one. Best before the next prompt is read: what is read goes into the first cells that are
        free, and who sits behind others pays for their cells until the end.
        """
        if not self._parking.n_bytes or any(answer.is_reading for answer in self.active):
            return False
        idle = self._idle()
        if sum(len(self.engine.cached[number]) for number in idle) <= IDLE_TOKENS:
            return False
        oldest = next((each for each in idle if self.engine.saved_bytes(each) <= self._parking.n_bytes), None)
        if oldest is not None:
            self._park(oldest)
        return oldest is not None

    def was_read(self, answer: Answer, n_tokens: int) -> None:
        """Note that an answer's sequence has n_tokens more."""
        number = answer.sequence
        if answer.is_exact and number is not None and n_tokens == UNIT:
            start = len(self.engine.cached[number]) - n_tokens
            self._units[number] += UNIT if self._units[number] == start else 0

    def cleared(self) -> None:
        """Note that the cache was emptied."""
        self._units = [0] * len(self._units)
        self._parking.clear()

    def forget(self, number: int | None) -> None:
        """Empty a sequence that belongs to nobody."""
        if number is not None and self.owners[number] is None:
            self.engine.forget(number)
            self._units[number] = 0

    def _idle(self) -> list[int]:
        """Return the sequences that hold something and belong to nobody, the one used longest ago first."""
        idle = (number for number, owner in enumerate(self.owners) if owner is None and self.engine.cached[number])
        return sorted(idle, key=lambda number: self._used[number])

    def _park(self, number: int) -> None:
        """Move a sequence that belongs to nobody out of the cache."""
        if self._parking.n_bytes:
            state = self.engine.save(number)
            self._parking.put(
                Parked(list(self.engine.cached[number]), self._routes[number], self._units[number], state)
            )
        self.forget(number)

    def _bring_back(self, answer: Answer) -> None:
        """Move into the cache again what moved out of it, if it begins an answer's prompt better than what is there.

        Of what has little in common with the prompt only that comes back, and the rest stays parked.
        """
        wanted = answer.whole[:-1]
        alike = [each for each in self._parking if each.only_expert == answer.only_expert]
        shared = [usable(answer, each.tokens, each.n_units, wanted) for each in alike]
        there = [
            self._usable(answer, number, wanted)
            for number, route in enumerate(self._routes)
            if route == answer.only_expert
        ]
        if not alike or max(shared) < max(there, default=0) + WORTH_RESTORING:
            return
        n_shared = max(shared)
        parked = alike[shared.index(n_shared)]
        is_whole = 2 * n_shared >= len(parked.tokens)
        if not is_whole and not self.engine.model.can_rewind:
            return
        if is_whole:
            self._parking.take(parked)  # before another comes in, for whose sake it might go
        number = min(self._free(), key=self._worth)
        if self.engine.cached[number]:
            self._park(number)
        if not self.engine.restore(number, parked.tokens, parked.state):
            self._parking.put(parked)
            return
        if not is_whole:
            self.engine.reuse(number, wanted[: n_shared + 1])
        self._routes[number] = parked.only_expert
        self._units[number] = min(parked.n_units, len(self.engine.cached[number])) // UNIT * UNIT
        self._tick += 1
        self._used[number] = self._tick

    def _free(self) -> list[int]:
        """Return the sequences that belong to nobody."""
        return [number for number, owner in enumerate(self.owners) if owner is None]

    def _usable(self, answer: Answer, number: int, wanted: list[int]) -> int:
        """Return how much of what a sequence holds an answer may take over."""
        return usable(answer, self.engine.cached[number], self._units[number], wanted)

    def _worth(self, number: int) -> tuple[bool, int]:
        return bool(self.engine.cached[number]), self._used[number]

    def _inherit(self, source: int | None, target: int, n_shared: int) -> None:
        self.engine.forget(target)
        self._units[target] = 0
        if source is not None and n_shared:
            self.engine.copy(source, [target])
            self._units[target] = self._units[source]

    def _begin(self, answer: Answer) -> None:
        """Keep of the sequence what the prompt begins with; the rest of the prompt is left to read."""
        assert answer.sequence is not None
        generation = answer.generation
        generation.sequence = answer.sequence
        whole = answer.whole
        n_usable = self._usable(answer, answer.sequence, whole[:-1])
        n_reused = self.engine.reuse(answer.sequence, whole[: n_usable + 1] if answer.is_exact else whole)
        self._units[answer.sequence] = min(self._units[answer.sequence], n_reused) // UNIT * UNIT
        generation.pending = whole[n_reused:]
        if not generation.tokens:
            generation.n_reused = n_reused


def usable(answer: Answer, held: list[int], n_units: int, wanted: list[int]) -> int:
    """Return how many of the tokens held an answer may take over, when n_units of them were read in units."""
    n_shared = shared_prefix(held, wanted)
    return whole_units(answer, min(n_shared, n_units) if answer.is_exact else n_shared)


def whole_units(answer: Answer, n_tokens: int) -> int:
    """Return how many of n_tokens are whole units, for an answer that only takes over these."""
    return n_tokens // UNIT * UNIT if answer.is_exact else n_tokens
