"""A model and its template: where prompts begin, where answers end, and what the model thinks."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from moe_gguf.formats.errors import EngineError
from moe_gguf.runner.engine import Engine
from moe_gguf.runner.generation import begin, generate, pieces_of
from moe_gguf.runner.model import Model, spell
from moe_gguf.runner.sampling import SamplingOptions
from moe_gguf.runner.session import Session
from moe_gguf.runner.templates.chat_format import TemplateOptions, chat_format, continued
from moe_gguf.runner.templates.endings import Endings, stops_of
from moe_gguf.runner.templates.message import Message, user
from moe_gguf.runner.templates.thinking import Tags, ThoughtStream

from ...loaded_models import ONE_THREAD
from ..tiny_gguf import Fields, write_tiny
from .test_render import MISTRAL

IM_START, IM_END, EOS = 3, 4, 2


def turns(end: str) -> str:
    """Return a template whose answers end in this."""
    return (
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}"
        f"{{% if m.role == 'assistant' %}}{end}{{% else %}}\n{{% endif %}}{{% endfor %}}assistant:"
    )


@pytest.fixture
def tiny_with(tmp_path: Path) -> Callable[..., Any]:
    """Return a function that loads a tiny model with this template and other fields than usual."""

    @contextmanager
    def load(template: str | None = None, change: Fields | None = None, types: Fields | None = None) -> Iterator[Model]:
        def alter(fields: Fields, _: object) -> None:
            fields["tokenizer.chat_template"] = template
            fields.update(change or {})
            for token, kind in (types or {}).items():
                fields["tokenizer.ggml.token_type"][int(token)] = kind
            for key in [key for key, value in fields.items() if value is None]:
                del fields[key]

        with Model(write_tiny(tmp_path / "changed.gguf", alter), ONE_THREAD) as model:
            yield model

    return load


def test_the_files_template_is_used(smollm2: Model) -> None:
    chat = chat_format(smollm2)
    found = chat.render([user("Hi")])
    assert found.text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert "".join(spell(smollm2, token, special=True).decode() for token in chat.tokens(found)) == found.text
    assert chat.endings == Endings() and chat.tags is None


def test_bos_is_there_once(tiny_with, tiny: Model) -> None:
    for template in (MISTRAL, "{{ bos_token }}" + MISTRAL, MISTRAL.removeprefix("{{ bos_token }}")):
        with tiny_with(template) as model:
            chat = chat_format(model)
            tokens = chat.tokens(chat.render([user("the cat")]))
            assert tokens[0] == 1 and tokens.count(1) == 1
    assert continued(tiny, "<s>the cat") == continued(tiny, "the cat")


def test_a_prompt_does_not_end_with_eos(tiny_with, tiny: Model) -> None:
    with tiny_with(change={"tokenizer.ggml.add_eos_token": True, "tokenizer.ggml.eos_token_id": EOS}) as model:
        assert continued(model, "the cat") == continued(tiny, "the cat")
        assert continued(model, "the cat</s>")[-1] == EOS
        assert continued(model, "")[:1] == [1]


def test_no_template_means_chatml(tiny_with) -> None:
    with tiny_with() as model:
        chat = chat_format(model)
        assert not chat.template.chosen
        assert chat.render([user("a")]).text == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("end", "eos", "endings"),
    [
        ("</s>", 2, Endings()),
        ("{{ eos_token }}", 2, Endings()),
        ("\n</s>\n", 2, Endings()),
        ("<|im_start|>", 2, Endings(frozenset({IM_START}))),
        (" <|im_start|>\n", 2, Endings(frozenset({IM_START}))),
        ("\n### ", 2, Endings(texts=("### user:",))),
        ("<end_it>\n", 2, Endings(texts=("<end_it>",))),
        ("\n", 2, Endings(texts=("user:",))),
    ],
)
def test_where_answers_end_by_the_template(tiny_with, end: str, eos: int, endings: Endings) -> None:
    with tiny_with(turns(end), {"tokenizer.ggml.eos_token_id": eos}) as model:
        found = chat_format(model).endings
    assert (found.tokens, found.texts) == (endings.tokens, endings.texts)
    assert bool(found.note) == bool(found.tokens or found.texts)


@pytest.mark.parametrize(
    "template",
    [
        turns("<|im_start|>").replace(
            "{{ m.content }}", "{% if m.thinking %}{{ m.thinking }}<|im_start|>{% endif %}{{ m.content }}"
        ),
        turns("<|im_start|>") + "{# <|channel|> #}",
    ],
)
def test_what_ends_thoughts_too_ends_no_answer(tiny_with, template: str) -> None:
    with tiny_with(template, {"tokenizer.ggml.eos_token_id": EOS}) as model:
        assert chat_format(model).endings == Endings()


def test_a_model_that_would_never_stop_stops(tiny_with) -> None:
    greedy = SamplingOptions(temp=0, logit_bias=((IM_START, 100.0),))
    with (
        tiny_with(turns("<|im_start|>"), {"tokenizer.ggml.eos_token_id": EOS}) as model,
        Engine(model, ONE_THREAD) as engine,
    ):
        pieces = list(Session(engine, greedy, n_predict=5).ask("the cat"))
        assert (len(pieces), pieces[-1].finish) == (1, "end")
        ignoring = SamplingOptions(temp=0, logit_bias=((IM_START, 100.0),), ignore_eos=True)
        assert list(Session(engine, ignoring, n_predict=5).ask("the cat"))[-1].finish == "length"


@pytest.mark.parametrize("key", ["eos", "eot", "eom"])
def test_every_kind_of_end_that_a_file_names_ends(tiny_with, key: str) -> None:
    fields = {"tokenizer.ggml.eos_token_id": EOS, f"tokenizer.ggml.{key}_token_id": IM_START}
    options = SamplingOptions(temp=0, logit_bias=((IM_START, 100.0),))
    with tiny_with(change=fields) as model, Engine(model, ONE_THREAD) as engine:
        assert [piece.finish for piece in generate(engine, [1, 5], options, n_predict=5)] == ["end"]


def test_a_stop_string_that_is_a_control_token_matches_by_id(tiny: Model) -> None:
    assert stops_of(tiny, ("<|im_start|>", "the", "")).tokens == {IM_START}
    options = SamplingOptions(temp=0, logit_bias=((IM_START, 100.0),), ignore_eos=True)
    with Engine(tiny, ONE_THREAD) as engine:
        stops = stops_of(tiny, ["<|im_start|>"])
        pieces = pieces_of(engine, begin(engine, [1, 5], options, stops=stops.texts, stop_tokens=stops.tokens))
        assert [piece.finish for piece in pieces] == ["stop"]


THINKER = (
    "{% for m in messages %}{{ m.role }}: {% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n"
    "{% endif %}{{ m.content }}\n{% endfor %}assistant:{% if enable_thinking is defined and enable_thinking %}<think>\n"
    "{% endif %}"
)


def test_thoughts_are_kept_apart(tiny_with) -> None:
    with tiny_with(THINKER) as model:
        chat = chat_format(model)
        assert chat.tags == Tags("<think>", "</think>") and chat.separates_thoughts
        open_ended = chat.render([user("a")], values={"enable_thinking": True})
        assert chat.begins_thinking(open_ended) and not chat.begins_thinking(chat.render([user("a")]))
        off = chat_format(model, TemplateOptions(reasoning=False, reasoning_format="none"))
        assert not off.separates_thoughts and off.options.values == {"enable_thinking": False, "thinking": False}
        with Engine(model, ONE_THREAD) as engine:
            thinking = chat_format(model, TemplateOptions(reasoning=True))
            session = Session(engine, SamplingOptions(temp=0, ignore_eos=True), n_predict=6, chat=thinking)
            pieces = list(session.ask("the cat"))
    assert not any(piece.text for piece in pieces) and any(piece.thought for piece in pieces)
    assert session.messages[-1].reasoning_content and not session.messages[-1].content


def test_thoughts_that_are_off_end_where_a_template_begins_them(tiny_with) -> None:
    always = THINKER.replace("{% if enable_thinking is defined and enable_thinking %}<think>", "{% if true %}<think>")
    with tiny_with(always) as model:
        off = chat_format(model, TemplateOptions(reasoning=False))
        ended = off.render([user("a")])
        assert ended.text.endswith("<think>\n</think>") and not off.begins_thinking(ended)
        assert off.render([user("a")], values={"enable_thinking": True}).text.endswith("<think>\n")


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize(
    ("text", "inside", "thought", "said"),
    [
        ("<think>\nhm <b>\n</think>\n\na hat", False, "hm <b>\n", "a hat"),
        ("hm\n</think>a hat</think>", True, "hm\n", "a hat</think>"),
        ("a hat <think>", False, "", "a hat <think>"),
        ("\n<think>hm</thin", False, "hm</thin", ""),
        ("<thi", False, "", "<thi"),
        ("", False, "", ""),
    ],
)
def test_thoughts_in_a_stream(text: str, inside: bool, thought: str, said: str, size: int) -> None:
    stream = ThoughtStream(Tags("<think>", "</think>"), inside)
    heard = [stream.push(text[i : i + size]) for i in range(0, len(text), size)] + [stream.flush()]
    assert ("".join(each.thought for each in heard), "".join(each.said for each in heard)) == (thought, said)


def test_requests_of_many_threads_do_not_meet(tiny: Model) -> None:
    chat = chat_format(tiny, TemplateOptions(chat_template=THINKER))

    def prompt(number: int) -> list[int]:
        values = {"enable_thinking": number % 2 == 0}
        return chat.tokens(chat.render([user(f"the cat {number}")], values=values))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(prompt, range(200))) == [prompt(number) for number in range(200)]


def test_a_template_from_a_file(tiny: Model, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_bytes(b"\xef\xbb\xbf[{{ messages[0].content }}]")
    chat = chat_format(tiny, TemplateOptions(chat_template_file=tmp_path / "t.jinja"))
    assert chat.render([Message("user", "a")]).text == "[a]"
    (tmp_path / "t.jinja").write_text(" ")
    with pytest.raises(EngineError, match="an empty file is no chat template"):
        chat_format(tiny, TemplateOptions(chat_template_file=tmp_path / "t.jinja"))
