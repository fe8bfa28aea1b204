"""One answer in the making, between the thread that computes it and the client that waits for it."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..formats.errors import MoeGgufError
from ..runner.generation import Generation, Piece
from ..runner.routing_tap import Routing


class Event(NamedTuple):
    """What one step adds to an answer: a piece, with the experts that made it where they were asked for."""

    piece: Piece
    routing: Routing | None = None


@dataclass
class Times:
    """When things happened to an answer, in seconds of time.perf_counter; 0 is not yet."""

    asked: float = field(default_factory=time.perf_counter)
    begun: float = 0.0
    first: float = 0.0
    last: float = 0.0


class Inbox:
    """What came of the answers of one request, for the client that waits; used in the client's loop alone."""

    def __init__(self) -> None:
        """Begin empty."""
        self._events: list[tuple[Answer, Event]] = []
        self._failure: MoeGgufError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, answer: "Answer", event: Event | None) -> None:
        """Take an event, or None when the answer's `failure` is set."""
        if event is not None:
            self._events.append((answer, event))
        else:
            self._failure = answer.failure
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self, seconds: float | None = None) -> "list[tuple[Answer, Event]]":
        """Return what came since the last time, nothing if that takes `seconds`. Raises an answer's failure."""
        while not self._events:
            if self._failure is not None:
                raise self._failure
            self._waiter = asyncio.get_running_loop().create_future()
            if seconds is None:
                await self._waiter
            elif not (await asyncio.wait({self._waiter}, timeout=seconds))[0]:
                return []
        found, self._events = self._events, []
        return found


@dataclass(eq=False)
class Answer:
    """A prompt that waits, is read, or is being answered.

    The thread that computes owns `generation`, `sequence`, `times` and `waits_for` (the sequence that reads the same
    beginning, and how much of it). `is_exact`: the prompt is read in units that do not depend on what else is asked, so
    that the same seed gives the same answer. `cancelled` and `failure` are written once; `inbox` belongs to the
    client's loop.
    """

    prompt: list[int]
    generation: Generation
    inbox: Inbox
    index: int = 0
    client: str = ""
    only_expert: int | None = None
    asks_experts: bool = False
    is_exact: bool = False
    deadline: float = float("inf")
    sequence: int | None = None
    waits_for: tuple[int, int] | None = None
    cancelled: bool = False
    failure: MoeGgufError | None = None
    times: Times = field(default_factory=Times)

    @property
    def whole(self) -> list[int]:
        """The prompt and the answer so far: what the sequence holds, and what is pending."""
        return self.prompt + self.generation.tokens

    @property
    def reads_units(self) -> bool:
        """Whether a unit of the prompt is to be read next, in a batch of its own."""
        n_read = len(self.prompt) + len(self.generation.tokens) - len(self.generation.pending)
        return self.is_exact and len(self.generation.pending) > 1 and n_read < len(self.prompt)

    @property
    def is_reading(self) -> bool:
        """Whether more than one token is left to read before the next one can be chosen."""
        return len(self.generation.pending) > 1


def hand_out(items: Sequence[tuple[Answer, Event | None]]) -> None:
    """Put what a step made into the inboxes; called in the clients' loop."""
    for answer, event in items:
        if not answer.cancelled:
            answer.inbox.put(answer, event)
