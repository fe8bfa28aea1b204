"""One thread that owns a context: answers join and leave its batch at every step.

What other threads want lies in a mailbox; what a step made goes out by `deliver`, for all answers at once.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..formats.errors import EngineError, MoeGgufError
from ..runner.engine import Cancelled, ContextFull, Engine
from ..runner.generation import Piece, take
from ..runner.routing_tap import RoutingTap
from .answer import Answer, Event
from .batching import Pace, Stretch, listens, stretch, stretches_of, unit_of
from .counters import Counters
from .sequences import Sequences
from .waiting import Waiting

Result = TypeVar("Result")
Deliver = Callable[[list[tuple[Answer, Event | None]]], None]


class Stopped(EngineError):
    """The server stops, and begins nothing more."""


@dataclass(frozen=True)
class Limits:
    """How many answers are made at once, how many may wait for that, and what may be kept of them beside the cache."""

    n_parallel: int = 4
    n_waiting: int = 128
    parked_bytes: int = 2**30


@dataclass
class Mailbox:
    """What other threads left for the one that computes; all of it is read and written under `condition`."""

    waiting: Waiting
    condition: threading.Condition = field(default_factory=threading.Condition)
    errands: list[tuple[Callable[[], Any], Future[Any]]] = field(default_factory=list)
    stops: bool = False
    ends: bool = False


class Scheduler:
    """Answers what is submitted, in a thread of its own, which also calls `deliver` with what each step made."""

    def __init__(self, engine: Engine, limits: Limits, deliver: Deliver, tap: RoutingTap | None = None) -> None:
        """Use the engine, which nobody else may use from now on; `tap` hears its routers."""
        self.engine = engine
        self.counters = Counters()
        self.limits = limits
        self.sequences = Sequences(engine, limits.n_parallel, limits.parked_bytes)
        self._deliver = deliver
        self._tap = tap
        self._box = Mailbox(Waiting(limits.n_waiting))
        self._pace = Pace()
        self._outgoing: list[tuple[Answer, Event | None]] = []
        self._is_crowded = False
        self._thread = threading.Thread(target=self._run, name="moe-gguf engine", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def submit(self, answers: Sequence[Answer]) -> None:
        """Let answers wait for their turn. Raises QueueFull and Stopped; then none of them waits."""
        box = self._box
        with box.condition:
            if box.stops:
                raise Stopped("the server is stopping")
            places = self.limits.n_parallel - len(self.sequences.active)
            box.waiting.demand_room(len(answers), places)
            for answer in answers:
                box.waiting.push(answer)
            box.condition.notify()

    def cancel(self, answer: Answer) -> None:
        """Drop an answer at the next step; nothing more is delivered of it. Any thread may call this, at any time."""
        with self._box.condition:
            answer.cancelled = True
            self._box.condition.notify()

    def call(self, act: Callable[[], Result]) -> "Future[Result]":
        """Let the thread that owns the context do something between two steps."""
        future: Future[Result] = Future()
        with self._box.condition:
            if self._box.ends:
                future.set_exception(Stopped("the server is stopping"))
            else:
                self._box.errands.append((act, future))
                self._box.condition.notify()
        return future

    @property
    def n_waiting(self) -> int:
        """How many answers wait."""
        return len(self._box.waiting)

    def stop(self, seconds: float) -> None:
        """Begin nothing more; let answers end for so long, then drop them, and end the thread."""
        box = self._box
        with box.condition:
            box.stops = True
            box.condition.notify()
        if not self._thread.is_alive():
            return
        self._thread.join(seconds)
        with box.condition:
            box.ends = True
            box.condition.notify()
        if self._thread.is_alive():
            self.engine.cancel()
            self._thread.join()

    def _run(self) -> None:
        while self._prepare():
            self._step()
            if self._outgoing:
                outgoing, self._outgoing = self._outgoing, []
                self._deliver(outgoing)
            while self.sequences.clear_away() and not self.sequences.active and not self._box.waiting:
                pass  # one a step while somebody is answered, all before the next one comes
        if self._outgoing:
            self._deliver(self._outgoing)

    def _prepare(self) -> bool:
        """Do errands, drop the cancelled, seat those who wait; sleep while there is nothing to do. False is the end."""
        box = self._box
        with box.condition:
            while True:
                self._drop_cancelled()
                if box.ends or (box.stops and not self.sequences.active and not box.waiting):
                    self._end()
                    return False
                self._seat()
                if box.errands or self.sequences.active:
                    break
                box.condition.wait()
            errands, box.errands = box.errands, []
        for act, future in errands:
            try:
                future.set_result(act())
            except BaseException as error:
                future.set_exception(error)
        return True

    def _drop_cancelled(self) -> None:
        unwanted = {id(answer) for answer in self._box.waiting if answer.cancelled}
        self._box.waiting.drop(unwanted)
        dropped = [answer for answer in self.sequences.active if answer.cancelled]
        for answer in dropped:
            self._release(answer)
        self.counters.cancelled += len(unwanted) + len(dropped)

    def _seat(self) -> None:
        while not self._is_crowded and self.sequences.has_place() and (answer := self._box.waiting.pop()):
            answer.times.begun = answer.times.begun or time.perf_counter()
            self.sequences.place(answer)

    def _end(self) -> None:
        """Fail everybody who is still here."""
        self._box.ends = True
        stopped = Stopped("the server has stopped")
        while answer := self._box.waiting.pop():
            self._fail(answer, stopped)
        for answer in self.sequences.active:
            self._fail(answer, stopped)
        for _, future in self._box.errands:
            future.set_exception(stopped)

    def _step(self) -> None:
        """Decode a batch of all that goes on together, and one of what is read alone."""
        ready, n_ubatch = self._ready(), self.engine.n_ubatch
        alone = next((answer for answer in ready if answer.reads_units), None)
        others = [answer for answer in ready if not answer.reads_units]
        # In caches of their own, seeded answers hang on nothing else when each of their tokens is a batch.
        apart = [] if self.engine.kv_unified else [answer for answer in others if answer.is_exact]
        together = [answer for answer in others if answer not in apart]
        if together:
            self._decode(stretches_of(together, self._pace, n_ubatch))
        for answer in apart:
            if answer.sequence is not None:
                self._decode([stretch(answer, 1)])
        if alone is not None and alone.sequence is not None:
            self._decode(unit_of(alone, n_ubatch))

    def _decode(self, stretches: Sequence[Stretch]) -> None:
        """Decode one batch and book what comes of it."""
        started = time.perf_counter()
        parts = [stretch.part for stretch in stretches]
        hears = listens(self._tap, stretches)
        try:
            rows = self.engine.decode(parts)
        except MoeGgufError as error:
            self._recover(stretches, error)
            return
        finally:
            if hears and self._tap:
                self._tap.rest()
        if len(parts[-1].tokens) > 1:
            n_tokens = sum(len(part.tokens) for part in parts)
            self._pace.measured(n_tokens, time.perf_counter() - started)
        self.counters.decoded(len(parts))
        for each, row in zip(stretches, rows, strict=True):
            self._book(each, row)

    def _ready(self) -> list[Answer]:
        """Return the answers that can go on now; those whose time is over end."""
        now = time.perf_counter()
        ready = []
        for answer in self.sequences.active:
            if now > answer.deadline:
                self._finish(answer, "length")
                continue
            if answer.waits_for:
                self.sequences.catch_up(answer)
            if not answer.waits_for:
                ready.append(answer)
        return ready

    def _book(self, stretch: Stretch, row: int) -> None:
        answer, part = stretch
        generation = answer.generation
        self.sequences.was_read(answer, len(part.tokens))
        if part.sampler is None:
            generation.pending = generation.pending[len(part.tokens) :]
            return
        try:
            choice = self.engine.choose(part, row)
        except MoeGgufError as error:
            self._fail(answer, error)
            return
        room = self.engine.n_ctx_seq - len(self.engine.cached[part.sequence])
        piece = take(self.engine.model, generation, choice, room)
        answer.times.last = generation.latest_token
        answer.times.first = generation.first_token
        routing = self._tap.routing(row) if answer.asks_experts and self._tap else None
        self._outgoing.append((answer, Event(piece, routing)))
        if piece.finish is not None:
            self._release(answer)
            self.counters.answered(answer)

    def _recover(self, stretches: Sequence[Stretch], error: MoeGgufError) -> None:
        """Leave pending what was not decoded of a batch that failed; make room, or fail its answers."""
        for answer, part in stretches:
            held = len(self.engine.cached[part.sequence])
            answer.generation.pending = answer.whole[held:] or answer.whole[-1:]
        if isinstance(error, ContextFull):
            self._make_room()
        elif not isinstance(error, Cancelled):
            for answer, _ in stretches:
                self._fail(answer, error)

    def _make_room(self) -> None:
        """Move idle sequences out, oldest first; then let the youngest answer wait; the last one has all there is."""
        if self.sequences.empty_oldest():
            return
        *_, youngest = active = self.sequences.active
        if len(active) > 1:
            number = youngest.sequence
            self.sequences.release(youngest)
            self.sequences.forget(number)
            with self._box.condition:
                self._box.waiting.push_back(youngest)
            self._is_crowded = True
            self.counters.preempted += 1
        elif youngest.generation.tokens:
            self._finish(youngest, "context")
        else:
            n_ctx = self.engine.n_ctx_seq
            self._fail(youngest, EngineError(f"the prompt does not fit into the context of {n_ctx} tokens"))

    def _finish(self, answer: Answer, reason: str) -> None:
        """End an answer that its own tokens did not end."""
        answer.generation.finish = reason
        self._outgoing.append((answer, Event(Piece(-1, answer.generation.stream.flush(), None, reason))))
        self._release(answer)
        self.counters.answered(answer)

    def _fail(self, answer: Answer, error: MoeGgufError) -> None:
        answer.failure = error
        self._outgoing.append((answer, None))
        self._release(answer)
        self.counters.failed += 1

    def _release(self, answer: Answer) -> None:
        self.sequences.release(answer)
        answer.generation.sampler.close()
        self._is_crowded = False
