"""The scheduler over a real context: what is answered under load equals what is answered alone; places come free."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moe_gguf.formats.errors import EngineError
from moe_gguf.runner.engine import Engine
from moe_gguf.runner.generation import Generation, generate
from moe_gguf.runner.model import Model
from moe_gguf.runner.sampling import Sampler, SamplingOptions
from moe_gguf.runner.streaming import TextStream
from moe_gguf.serve.answer import Answer, Event, Inbox
from moe_gguf.serve.batching import Pace, stretches_of
from moe_gguf.serve.parked import Parked, Parking
from moe_gguf.serve.scheduler import Limits, Scheduler, Stopped
from moe_gguf.serve.sequences import IDLE_TOKENS
from moe_gguf.serve.service import opened
from moe_gguf.serve.waiting import QueueFull, Waiting

from ..loaded_models import ONE_THREAD
from ..runner.tiny_gguf import write_tiny
from .conftest import options

OPTIONS = replace(ONE_THREAD, n_ctx=1024, n_ubatch=32, n_seq_max=8)


@dataclass
class Heard:
    """What a scheduler delivered, by answer."""

    pieces: dict[int, list[Event]] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)
    wanted: int = 0
    n_ended: int = 0

    def deliver(self, items: list[tuple[Answer, Event | None]]) -> None:
        for answer, event in items:
            if event is not None:
                self.pieces.setdefault(id(answer), []).append(event)
            self.n_ended += event is None or event.piece.finish is not None
        if self.n_ended >= self.wanted:
            self.ended.set()

    def wait(self, n_answers: int) -> None:
        self.wanted = n_answers
        if self.n_ended < n_answers:
            self.ended.clear()
            assert self.ended.wait(60)

    def tokens(self, answer: Answer) -> list[int]:
        return [event.piece.token for event in self.pieces.get(id(answer), ()) if event.piece.token >= 0]


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def scheduler(tiny: Model, heard: Heard) -> Iterator[Scheduler]:
    with Engine(tiny, OPTIONS) as engine:
        found = Scheduler(engine, Limits(4, 64), heard.deliver)
        found.start()
        yield found
        found.stop(0)


def answer_of(model: Model, prompt: list[int], count: int, seed: int = 1, client: str = "") -> Answer:
    sampler = Sampler(model, SamplingOptions(seed=seed, ignore_eos=True))
    sampler.accept_prompt(prompt[-64:])
    generation = Generation(-1, sampler, TextStream(), count, None, list(prompt), len(prompt), 0)
    return Answer(prompt, generation, Inbox(), client=client)


def alone(model: Model, prompt: list[int], count: int, seed: int) -> list[int]:
    """Return what the runner answers when nothing else is asked."""
    with Engine(model, OPTIONS) as engine:
        sampling = SamplingOptions(seed=seed, ignore_eos=True)
        return [piece.token for piece in generate(engine, prompt, sampling, n_predict=count)]


def prompt_of(length: int, first: int = 0) -> list[int]:
    return [1, *((first + 7 * i) % 24 + 262 for i in range(length - 1))]


def test_answers_under_load_equal_those_made_alone(tiny: Model, scheduler: Scheduler, heard: Heard) -> None:
    prompts = [prompt_of(length, first) for first, length in enumerate((3, 90, 40, 200, 5, 33, 64, 120, 17, 150))]
    answers = [answer_of(tiny, prompt, 20 + number, number) for number, prompt in enumerate(prompts)]
    scheduler.submit(answers)
    heard.wait(len(answers))
    for number, answer in enumerate(answers):
        assert heard.tokens(answer) == alone(tiny, answer.prompt, 20 + number, number)
    assert scheduler.counters.n_busy > scheduler.counters.n_decode


def test_exact_answers_do_not_depend_on_what_else_is_asked(tmp_path: Path, heard: Heard) -> None:
    options = replace(OPTIONS, n_ubatch=128, n_ctx=4096, flash_attn="on", repack=None, kv_unified=False)
    path = write_tiny(tmp_path / "q8.gguf", qtype=GGMLQuantizationType.Q8_0)

    def exact(number: int) -> Answer:
        system = prompt_of(150)
        found = answer_of(model, [*system, *prompt_of(5 + 31 * number, number)], 30, number)
        found.is_exact = True
        return found

    with Model(path, options) as model, Engine(model, options) as engine:
        scheduler = Scheduler(engine, Limits(6, 64), heard.deliver)
        scheduler.start()
        single = [exact(number) for number in range(8)]
        for number, answer in enumerate(single):
            scheduler.submit([answer])
            heard.wait(number + 1)
            scheduler.call(engine.clear).result()
            scheduler.sequences.cleared()
        crowd = [exact(number) for number in (*range(8), *range(8))]
        others = [answer_of(model, prompt_of(40 + 9 * number), 40, number) for number in range(8)]
        scheduler.submit([answer for pair in zip(crowd, others, strict=False) for answer in pair] + crowd[8:])
        heard.wait(8 + 24)
        scheduler.stop(0)
        for number, answer in enumerate(crowd):
            assert heard.tokens(answer) == heard.tokens(single[number % 8])
        assert any(answer.generation.n_reused for answer in crowd)


def test_a_beginning_that_prompts_share_is_read_once(tiny: Model, scheduler: Scheduler, heard: Heard) -> None:
    system = prompt_of(150)
    answers = [answer_of(tiny, [*system, 262 + number, 270], 6, number) for number in range(20)]
    scheduler.submit(answers)
    heard.wait(20)
    assert scheduler.counters.prompt_tokens == len(system) + 2 * 20
    for number in (0, 7, 19):
        assert heard.tokens(answers[number]) == alone(tiny, answers[number].prompt, 6, number)


def test_the_next_turn_goes_on_from_the_last(tiny: Model, scheduler: Scheduler, heard: Heard) -> None:
    first = answer_of(tiny, prompt_of(50), 10)
    scheduler.submit([first])
    heard.wait(1)
    other = answer_of(tiny, prompt_of(60, 5), 4)
    second = answer_of(tiny, [*first.whole, 263, 264], 5)
    scheduler.submit([other, second])
    heard.wait(3)
    assert second.generation.n_reused == len(first.whole) - 1
    assert heard.tokens(second) == alone(tiny, second.prompt, 5, 1)


def test_who_is_idle_moves_out_of_the_cache_and_comes_back(tiny: Model, scheduler: Scheduler, heard: Heard) -> None:
    first = [answer_of(tiny, prompt_of(60 + number, number), 10, number) for number in range(4)]
    for number, answer in enumerate(first):
        scheduler.submit([answer])
        heard.wait(number + 1)
    held = scheduler.call(lambda: sum(map(len, scheduler.engine.cached))).result()
    assert held <= IDLE_TOKENS  # before anybody else comes, who would wait for it
    turns = [answer_of(tiny, [*answer.whole, 263, 264], 8, 5) for answer in first]
    scheduler.submit(turns)
    heard.wait(8)
    for before, after in zip(first, turns, strict=True):
        assert after.generation.n_reused == len(before.whole) - 1
        assert heard.tokens(after) == alone(tiny, after.prompt, 8, 5)


def test_only_a_shared_beginning_comes_back_and_the_rest_stays(tiny: Model, scheduler: Scheduler, heard: Heard) -> None:
    long = answer_of(tiny, prompt_of(400), 10)
    scheduler.submit([long])
    heard.wait(1)
    assert scheduler.call(lambda: sum(map(len, scheduler.engine.cached))).result() == 0
    other = answer_of(tiny, [*long.prompt[:150], 270, 271], 8, 5)
    scheduler.submit([other])
    heard.wait(2)
    assert other.generation.n_reused == 150 and heard.tokens(other) == alone(tiny, other.prompt, 8, 5)
    again = answer_of(tiny, [*long.whole, 263, 264], 8, 5)
    scheduler.submit([again])
    heard.wait(3)
    assert again.generation.n_reused == len(long.whole) - 1
    assert heard.tokens(again) == alone(tiny, again.prompt, 8, 5)


def test_what_is_too_large_to_be_parked_stays(tiny: Model, heard: Heard) -> None:
    with Engine(tiny, OPTIONS) as engine:
        scheduler = Scheduler(engine, Limits(4, 64, 1000), heard.deliver)
        scheduler.start()
        first = answer_of(tiny, prompt_of(400), 10)
        scheduler.submit([first])
        heard.wait(1)
        again = answer_of(tiny, [*first.whole, 263, 264], 8, 5)
        scheduler.submit([again])
        heard.wait(2)
        scheduler.stop(0)
    assert again.generation.n_reused == len(first.whole) - 1


def test_what_is_parked_is_bounded_and_replaced_by_what_goes_on_from_it() -> None:
    def parked(tokens: list[int], n_bytes: int, n_units: int = 0) -> Parked:
        return Parked(tokens, None, n_units, np.zeros(n_bytes, np.uint8))

    parking = Parking(100)
    for each in (parked([1, 2], 30), parked([1, 3], 40), parked([1, 2, 4], 50), parked([1, 2, 4], 10, 64)):
        parking.put(each)
    assert [(each.tokens, each.n_units) for each in parking] == [([1, 3], 0), ([1, 2, 4], 64)]
    parking.put(parked([7], 80))
    assert [each.tokens for each in parking] == [[1, 2, 4], [7]]
    parking.put(parked([8], 101))
    assert [each.tokens for each in parking] == [[1, 2, 4], [7]]


def test_who_leaves_frees_the_place(tiny: Model, scheduler: Scheduler, heard: Heard) -> None:
    endless = [answer_of(tiny, prompt_of(20, number), 900, number) for number in range(4)]
    waiting = [answer_of(tiny, prompt_of(9, 11), 900), answer_of(tiny, prompt_of(8, 3), 5)]
    scheduler.submit([*endless, *waiting])
    while scheduler.n_waiting != 2:
        pass
    for answer in (*endless, waiting[0]):
        scheduler.cancel(answer)
    heard.wait(1)
    assert len(heard.tokens(waiting[1])) == 5 and not heard.tokens(waiting[0])
    assert scheduler.counters.cancelled == 5 and not scheduler.sequences.active


def test_more_than_the_context_holds_takes_turns(tiny: Model, scheduler: Scheduler, heard: Heard) -> None:
    answers = [answer_of(tiny, prompt_of(300 + number, number), 120, number) for number in range(4)]
    scheduler.submit(answers)
    heard.wait(4)
    assert scheduler.counters.preempted > 0 and scheduler.counters.failed == 0
    for number, answer in enumerate(answers):
        assert heard.tokens(answer) == alone(tiny, answer.prompt, 120, number)


def test_a_full_queue_refuses_and_stopping_ends(tiny: Model, heard: Heard) -> None:
    with Engine(tiny, OPTIONS) as engine:
        scheduler = Scheduler(engine, Limits(1, 2), heard.deliver)
        scheduler.start()
        scheduler.submit([answer_of(tiny, prompt_of(9), 900, number) for number in range(3)])
        with pytest.raises(QueueFull):
            scheduler.submit([answer_of(tiny, prompt_of(9), 5)])
        scheduler.stop(0.01)
        assert heard.n_ended == 3
        with pytest.raises(Stopped):
            scheduler.submit([answer_of(tiny, prompt_of(9), 5)])


def test_an_answer_whose_time_is_over_ends(tiny: Model, scheduler: Scheduler, heard: Heard) -> None:
    answer = answer_of(tiny, prompt_of(9), 900)
    answer.deadline = 0.0
    scheduler.submit([answer])
    heard.wait(1)
    assert answer.generation.finish == "length" and not answer.generation.tokens


def test_a_broken_grammar_ends_its_own_answer_only(tiny: Model, scheduler: Scheduler, heard: Heard) -> None:
    good, bad = (answer_of(tiny, prompt_of(9, number), 12) for number in range(2))
    bad.generation.sampler.close()
    bad.generation.sampler = Sampler(tiny, SamplingOptions(grammar='root ::= "\\U0010ffff" "x"', seed=1))
    bad.generation.sampler.sample = _refuses  # type: ignore[method-assign]
    scheduler.submit([good, bad])
    heard.wait(2)
    assert bad.failure and "grammar" in str(bad.failure)
    assert len(heard.tokens(good)) == 12


def _refuses(*_: object) -> int:
    raise EngineError("the grammar allows none of the model's tokens here")


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=12),
    n_ubatch=st.integers(16, 512),
    per_second=st.floats(1, 1e5),
)
def test_batches_are_bounded_and_everybody_goes_on(
    tiny: Model, lengths: list[int], n_ubatch: int, per_second: float
) -> None:
    answers = [answer_of(tiny, prompt_of(length), 5) for length in lengths]
    pace = Pace(per_second)
    chosen = stretches_of(answers, pace, n_ubatch)
    assert sum(len(stretch.part.tokens) for stretch in chosen) <= n_ubatch
    decoding = [answer for answer in answers if len(answer.generation.pending) == 1]
    assert [stretch.answer for stretch in chosen[: len(decoding)]] == decoding
    reading = [answer for answer in answers if len(answer.generation.pending) > 1]
    if reading:
        assert chosen[len(decoding)].answer is reading[0]
    for stretch in chosen:
        is_last = len(stretch.part.tokens) == len(stretch.answer.generation.pending)
        assert (stretch.part.sampler is not None) == is_last


def test_clients_take_turns(tiny: Model) -> None:
    waiting = Waiting(10)
    for client in "aaabbc":
        waiting.push(answer_of(tiny, prompt_of(3), 1, client=client))
    found = [waiting.pop() for _ in range(6)]
    assert [answer.client for answer in found if answer] == list("abcaba") and waiting.pop() is None


def test_one_thread_computes_all_there_is(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one would leave OpenMP more threads than processors, which then sleep at every barrier."""
    seen: set[str] = set()
    decode = Engine._decode

    def watched(engine: Engine, parts: Any) -> None:
        seen.add(threading.current_thread().name)
        decode(engine, parts)

    monkeypatch.setattr(Engine, "_decode", watched)
    service = opened(tiny_path, options(), "tiny")
    service.close()
    assert seen == {"moe-gguf engine"}
