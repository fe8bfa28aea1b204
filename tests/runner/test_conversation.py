"""Chat templates against transformers' renderings, history that grows too long, and templates that fail."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moe_gguf.formats.errors import EngineError
from moe_gguf.runner.conversation import load, prompt_of, save, without_oldest_turn
from moe_gguf.runner.engine import Cancelled, Engine
from moe_gguf.runner.model import Model
from moe_gguf.runner.sampling import SamplingOptions
from moe_gguf.runner.session import Session
from moe_gguf.runner.templates.chat_format import chat_format
from moe_gguf.runner.templates.message import Message, assistant, system, user

from ..loaded_models import ONE_THREAD


def chat_tokens(model: Model, messages: list[Message]) -> list[int]:
    chat = chat_format(model)
    return chat.tokens(chat.render(messages))


@pytest.fixture(scope="module")
def engine(tiny: Model) -> Iterator[Engine]:
    with Engine(tiny, ONE_THREAD) as engine:
        yield engine


def test_the_oldest_turns_go_first_and_whole(tiny: Model) -> None:
    turns = [user("the cat " * 6), assistant("an ant"), user("the hat " * 6), assistant("a can"), user("a tan")]
    messages = [system("in a land"), *turns]
    whole = len(chat_tokens(tiny, messages))
    everything = prompt_of(chat_format(tiny), messages, whole + 10, 10)
    assert (everything.n_dropped, list(everything.messages)) == (0, messages)
    shorter = prompt_of(chat_format(tiny), messages, whole + 9, 10)
    assert (shorter.n_dropped, list(shorter.messages)) == (2, [messages[0], *messages[3:]])
    assert len(shorter.tokens) + 10 <= whole + 9
    least = len(chat_tokens(tiny, [messages[0], messages[-1]]))
    assert prompt_of(chat_format(tiny), messages, least + 10, 10).n_dropped == 4
    with pytest.raises(EngineError, match=f"the message has {least} tokens and 10 are kept"):
        prompt_of(chat_format(tiny), messages, least + 9, 10)


@given(st.lists(st.sampled_from(["user", "assistant", "system"]), max_size=8))
def test_dropping_ends_with_one_turn(roles: list[str]) -> None:
    messages = [Message(role, str(number)) for number, role in enumerate(roles)]
    while True:
        shorter = without_oldest_turn(messages)
        if shorter is None:
            break
        assert len(shorter) < len(messages) and shorter[-1] == messages[-1]
        messages = shorter
    assert sum(message.role == "user" for message in messages) == min(roles.count("user"), 1)


def test_saved_conversations_come_back(tmp_path: Path) -> None:
    messages = [system("é"), user("a\nb"), assistant("\U0001f600")]
    save(tmp_path / "c.json", messages)
    assert load(tmp_path / "c.json") == messages


@pytest.mark.parametrize("text", ["", "[5]", '{"messages": 5}', '{"messages": [{"role": "user"}]}', "[" * 100_000])
def test_other_files_are_one_clear_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(EngineError, match="not a saved conversation"):
        load(tmp_path / "c.json")
    with pytest.raises(EngineError, match="No such file"):
        load(tmp_path / "none.json")


GREEDY = SamplingOptions(temp=0, ignore_eos=True)


def test_a_session_decodes_only_what_is_new(engine: Engine) -> None:
    session = Session(engine, GREEDY, n_predict=8)
    first = "".join(piece.text for piece in session.ask("the cat"))
    list(session.ask("an ant"))
    speed = session.speed()
    assert speed and speed.n_reused > 10 and speed.n_generated == 8
    assert [message.role for message in session.messages] == ["user", "assistant"] * 2
    assert session.messages[1].content == first


def test_regenerating_replaces_the_answer(engine: Engine) -> None:
    session = Session(engine, SamplingOptions(seed=1, temp=5, top_k=0, min_p=0, ignore_eos=True), n_predict=8)
    assert session.regenerate() is None
    list(session.ask("the cat"))
    first = session.messages[-1]
    pieces = session.regenerate()
    assert pieces is not None
    list(pieces)
    assert len(session.messages) == 2 and session.messages[-1] != first


def test_an_interrupted_answer_stays_and_an_unanswered_question_goes(engine: Engine) -> None:
    session = Session(engine, GREEDY, n_predict=20)
    pieces = session.ask("the cat")
    text = "".join(next(pieces).text for _ in range(6))
    engine.cancel()
    with pytest.raises(Cancelled):
        next(pieces)
    assert session.messages[-1].role == "assistant" and session.messages[-1].text.startswith(text)
    engine.cancel()
    with pytest.raises(Cancelled):
        list(session.ask("an ant"))
    assert len(session.messages) == 2


def test_a_long_chat_forgets_its_beginning_and_goes_on(engine: Engine) -> None:
    session = Session(engine, GREEDY, n_predict=40, system="in a land")
    dropped = []
    for number in range(14):
        pieces = list(session.ask(f"the cat {number} and the hat"))
        assert pieces[-1].finish == "length"
        dropped.append(session.dropped)
    assert dropped[0] == 0 and dropped[-1] == 2
    assert session.system == "in a land" and session.messages[0].role == "user"
    with pytest.raises(EngineError, match="shorten the message"):
        list(session.ask("the cat " * 400))
    assert len(list(session.ask("the cat"))) == 40


@pytest.mark.parametrize("seed", [1, 2])
def test_the_same_seed_gives_the_same_answer_whatever_the_cache_held(engine: Engine, seed: int) -> None:
    sampling = SamplingOptions(seed=seed, temp=1.5, ignore_eos=True)
    session, reused = Session(engine, sampling, n_predict=12, exact=True), []
    for number in range(5):
        list(session.ask(f"the cat {number} and the hat"))
        reused.append(session.last.n_reused if session.last else 0)
        messages = session.messages[:-1]
        with Engine(engine.model, ONE_THREAD) as fresh:
            other = Session(fresh, sampling, n_predict=12, messages=messages)
            assert "".join(piece.text for piece in other.answer()) == session.messages[-1].text, number
        if number == 2:
            list(session.regenerate() or ())  # drawn without a seed, it reuses all that it can
    assert reused[-1] > 0 and all(n % engine.n_ubatch == 0 for n in reused)


def test_how_much_of_a_prompt_is_read(engine: Engine) -> None:
    heard: list[tuple[int, int]] = []
    session = Session(engine, GREEDY, n_predict=2, on_prompt=lambda done, total: heard.append((done, total)))
    list(session.ask("the cat " * 40))
    assert heard[0] == (0, heard[-1][1]) and heard[-1][0] == heard[-1][1] > 64
    assert [done for done, _ in heard] == sorted(done for done, _ in heard) and len(heard) > 3
    quiet = Session(engine, GREEDY, n_predict=2)
    engine.forget(0)
    list(quiet.ask("the cat " * 40))
    assert quiet.messages == session.messages
    assert not heard.clear() and list(session.ask("a")) and not heard


def test_a_saved_session_goes_on(engine: Engine, tmp_path: Path) -> None:
    session = Session(engine, GREEDY, n_predict=4, system="in a land")
    list(session.ask("the cat"))
    save(tmp_path / "c.json", session.everything())
    other = Session(engine, GREEDY, n_predict=4)
    other.replace_by(load(tmp_path / "c.json"))
    assert (other.system, other.messages) == (session.system, session.messages)
    assert json.loads((tmp_path / "c.json").read_text())["messages"][0] == {"role": "system", "content": "in a land"}
