"""Messages through templates: nothing gets lost unsaid, whatever the template makes of contents and system messages."""

from pathlib import Path

import pytest
from moe_gguf.formats.errors import EngineError
from moe_gguf.runner.templates.message import Message, Part, ToolCall, assistant, system, user
from moe_gguf.runner.templates.render import Rendered, render
from moe_gguf.runner.templates.source import CHATML, Template, choose_template
from moe_gguf.runner.templates.wants import wants_of

MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% endif %}{% endfor %}"
)
FIRST_PHI3 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}<|user|>\n{{ message['content'] }}"
    "<|end|>\n<|assistant|>\n{% elif message['role'] == 'assistant' %}{{ message['content'] }}<|end|>\n{% endif %}"
    "{% endfor %}"
)
PARTS_ONLY = (
    "{% for message in messages %}<{{ message.role }}>{% for part in message.content %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}</s>{% endfor %}<assistant>"
)
EITHER = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}[{{ part.text }}]{% endfor %}{% endif %}{% endfor %}"
)
FORGETFUL = "{% for m in messages %}{% if m.role == 'user' and not loop.last %}{{ m.content }}{% endif %}{% endfor %}"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def rendered(source: str, *messages: Message, tools: tuple = (), **values: object) -> Rendered:
    """Render messages."""
    return render(Template(source, "file"), messages, SPECIAL, tools, values)


def test_a_template_that_loops_over_parts_gets_parts() -> None:
    found = rendered(PARTS_ONLY, system("Be brief."), user("the cat"))
    assert found == Rendered("<system>Be brief.</s><user>the cat</s><assistant>")
    wants = wants_of(Template(PARTS_ONLY, "file"))
    assert wants.parts and not wants.strings and wants.system


def test_a_template_that_takes_text_gets_parts_joined() -> None:
    message = Message("user", (Part(text="the cat"), Part(text="an ant")))
    assert rendered(CHATML, message).text.startswith("<|im_start|>user\nthe cat\nan ant<|im_end|>\n")
    assert rendered(EITHER, message, user("a hat")).text == "<user>[the cat][an ant]<user>a hat"


def test_other_parts_than_text_are_refused() -> None:
    picture = Message("user", (Part("image_url", source='{"type": "image_url", "image_url": {"url": "x"}}'),))
    with pytest.raises(EngineError, match="a part of the type 'image_url'; only text can be read here"):
        rendered(CHATML, picture)


@pytest.mark.parametrize("source", [MISTRAL, FIRST_PHI3])
def test_a_template_without_system_messages_gets_it_from_the_user(source: str) -> None:
    found = rendered(source, system("Be brief."), user("the cat"), assistant("a hat"), user("an ant"))
    assert "Be brief.\nthe cat" in found.text and not found.lost
    assert found.notes == ("the chat template takes no system message; it was put in front of the user's message",)
    assert not wants_of(Template(source, "file")).system


def test_a_system_message_in_the_middle_reaches_a_template_that_takes_only_the_first() -> None:
    source = (
        "{% if messages[0].role == 'system' %}<{{ messages[0].content }}>{% endif %}"
        "{% for m in messages %}{% if m.role != 'system' %}{{ m.role }}: {{ m.content }}\n{% endif %}{% endfor %}"
    )
    found = rendered(source, user("the cat"), assistant("a hat"), system("Be brief."), user("an ant"))
    assert found.text == "user: the cat\nassistant: a hat\nuser: Be brief.\nan ant\n" and found.notes


def test_what_a_template_loses_is_said() -> None:
    found = rendered(FORGETFUL, user("the cat"), assistant("a hat"), user("the cat"), user("the cat"), assistant("in"))
    assert found.lost == (
        "message 2 (assistant) is not in the prompt that the chat template makes",
        "message 5 (assistant) is not in the prompt that the chat template makes",
    )
    with pytest.raises(EngineError, match=r"the last message of the user is not in the prompt.*--chat-template chatml"):
        rendered(FORGETFUL, user("the cat"))


def test_thoughts_that_a_template_leaves_out_are_not_lost() -> None:
    source = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}"
    found = rendered(source, user("the cat"), assistant("<think>\nhm\n</think>\n\na hat"), user("an ant"))
    assert not found.lost


def test_tools_that_a_template_does_not_know_are_named() -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {}}}
    assert rendered(CHATML, user("the cat"), tools=(tool,)).lost == (
        "the chat template does not show the tool weather",
    )
    with pytest.raises(EngineError, match="a tool is"):
        rendered(CHATML, user("the cat"), tools=({"name": "weather"},))


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("{{ call.function.arguments | tojson }}", '{"city": "Rome"}'),
        ("{{ call.function.arguments }}", '{"city":"Rome"}'),
    ],
)
def test_arguments_come_as_the_template_reads_them(spelling: str, expected: str) -> None:
    source = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% for call in m.tool_calls or [] %}"
        f"{{{{ call.function.name }}}}{spelling}{{% endfor %}}|{{% endfor %}}"
    )
    call = Message("assistant", None, tool_calls=(ToolCall("weather", '{"city":"Rome"}', "1"),))
    found = rendered(source, user("the cat"), call, Message("tool", "sunny", tool_call_id="1"))
    assert f"assistant: weather{expected}|tool: sunny|" in found.text and not found.lost


def test_null_contents_become_empty_where_a_template_needs_text() -> None:
    call = Message("assistant", None, tool_calls=(ToolCall("weather"),))
    source = "{% for m in messages %}{{ m.role + m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}"
    source += "{% endfor %}{% endfor %}"
    assert rendered(source, user("the cat"), call).text == "userthe catassistantweather"


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("{{ raise_exception('no, never') }}", "the chat template fails: no, never"),
        ("{% for %}", "the chat template is broken"),
        ("{{ messages[0].nothing.at_all }}", "the chat template fails"),
        ("{{ ''.__class__.__mro__ }}", "the chat template fails"),
        ("{{ messages.append(1) }}", "the chat template fails"),
        ("{% for i in range(999999999) %}{% endfor %}", "the chat template fails"),
        ("{{ 'a' * 99999999 }}", "the chat template fails: the template makes too long a text"),
        ("{{ 9 ** 99999 }}", "the chat template fails: the template computes too large a power"),
        ("{{ 1 // 0 }}", "the chat template fails"),
        ("{{ raise_exception('\x1b]0;title\x07') }}", "the chat template fails: \ufffd"),
        ("{{ if .System }}{{ .System }}{{ end }}", "is a Go template, as Ollama uses them"),
        ("{{- range .Messages }}{{ .Content }}{{- end }}", "is a Go template, as Ollama uses them"),
        ("{{ .Prompt }}", "is a Go template, as Ollama uses them"),
    ],
)
def test_a_template_that_fails_is_one_clear_line(source: str, match: str) -> None:
    with pytest.raises(EngineError, match=match) as caught:
        rendered(source, user("a"))
    assert "\n" not in str(caught.value)


def test_what_templates_expect_is_there() -> None:
    source = (
        "{% generation %}{{ messages[0] | tojson }}{% endgeneration %}{% for i in [1, 2, 3] %}{% if i == 3 %}"
        "{% break %}{% endif %}{{ loop.previtem }}{{ i }}{% endfor %}{{ strftime_now('%Y') | length }} "
        "{{ {'b': 1, 'a': 'é'} | tojson(ensure_ascii=true, separators=(',', ':'), sort_keys=true) }}"
        "{{ [1] | tojson(indent=1) }}"
    )
    text = rendered(source, user("é<")).text
    assert text == '{"role": "user", "content": "é<"}1124 {"a":"\\u00e9","b":1}[\n 1\n]'


def test_the_template_is_chosen_by_name() -> None:
    own = {"tokenizer.chat_template": MISTRAL, "tokenizer.chat_template.rag": PARTS_ONLY}
    own["tokenizer.chat_template.tool_use"] = EITHER

    def source(wanted: str | None = None, with_tools: bool = False) -> str:
        return choose_template(own, Path("a.gguf"), wanted, with_tools).source

    assert (source(), source(with_tools=True), source("rag")) == (MISTRAL, EITHER, PARTS_ONLY)
    assert (source("{{ messages }}"), source("llama3")) == ("{{ messages }}", "llama3")
    assert choose_template({}, Path("a.gguf")) == Template(CHATML, "a.gguf", chosen=False)
    with pytest.raises(EngineError, match=r"no chat template 'lama3'; .*: rag, tool_use, .*llama3"):
        source("lama3")


@pytest.mark.parametrize("name", ["chatml", "llama3", " mistral-v7 "])
def test_metadata_that_holds_a_built_in_name_means_it(name: str) -> None:
    template = choose_template({"tokenizer.chat_template": name}, Path("a.gguf"))
    text = render(template, [system("Be brief."), user("the cat")], SPECIAL).text
    begins = {"c": "<|im_start|>system\nBe brief.", "l": "<|start_header_id|>system", "m": "[SYSTEM_PROMPT] Be brief."}
    assert text.startswith(begins[name.strip()[0]])
