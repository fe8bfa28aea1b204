"""Forty kinds of templates, rendered as transformers and llama.cpp's own Jinja engine render them.

Where the two differ it is said here why, and whom we follow.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from moe_gguf.formats.errors import EngineError
from moe_gguf.runner.model import Model, tokenize
from moe_gguf.runner.templates.chat_format import TemplateOptions, chat_format
from moe_gguf.runner.templates.message import message_from_json
from moe_gguf.runner.templates.render import Rendered, render
from moe_gguf.runner.templates.source import Template
from moe_gguf.runner.templates.wants import wants_of

from .kind_cases import BOS, EOS, KINDS, SCENES

GOLDEN = Path(__file__).parent / "golden"
TRANSFORMERS = json.loads((GOLDEN / "transformers.json").read_text("utf-8"))
LLAMA_CPP = json.loads((GOLDEN / "llama_server.json").read_text("utf-8"))
# llama.cpp tells every template whether to think, transformers only when asked: this one writes it into the prompt.
THINKS_UNLESS_TOLD = {"smollm3"}


def ours(kind: str, scene: str) -> Rendered | None:
    """Render a scene; None for what the template refuses."""
    case = SCENES[scene]
    messages = [message_from_json(each) for each in case["messages"]]
    special = {"bos_token": BOS, "eos_token": EOS}
    try:
        return render(Template(KINDS[kind], kind), messages, special, case.get("tools", ()), case.get("values"))
    except EngineError:
        return None


def is_whole(text: str | None, case: dict[str, Any]) -> bool:
    """Tell whether transformers shows every message, as text."""
    contents = [message["content"] for message in case["messages"]]
    texts = [content if isinstance(content, str) else content[0]["text"] for content in contents]
    return text is not None and all(each in text for each in texts) and "'type'" not in text


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_template_renders_as_transformers_does(kind: str, scene: str) -> None:
    """Where transformers fails or loses a message, as llama.cpp does."""
    found, expected = ours(kind, scene), TRANSFORMERS[kind][scene]
    if is_whole(expected, SCENES[scene]):
        assert found and found.text == expected
    elif found is None:
        assert LLAMA_CPP[kind][scene] is None
    elif kind not in THINKS_UNLESS_TOLD:
        assert found.text.removeprefix(BOS) == LLAMA_CPP[kind][scene]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in THINKS_UNLESS_TOLD])
def test_a_template_renders_as_llama_cpp_does(kind: str) -> None:
    """llama.cpp leaves out the bos that its tokenizer adds."""
    texts = {scene: found and found.text.removeprefix(BOS) for scene in SCENES for found in [ours(kind, scene)]}
    assert texts == {scene: LLAMA_CPP[kind][scene] for scene in SCENES}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_template_wants_is_what_llama_cpp_finds(kind: str) -> None:
    wants, theirs = wants_of(Template(KINDS[kind], kind)), LLAMA_CPP[kind]["wants"]
    assert wants.strings == theirs["supports_string_content"]
    assert wants.parts == theirs["supports_typed_content"]
    assert wants.system == theirs["supports_system_role"]
    assert wants.tools == theirs["supports_tools"]
    assert wants.tool_calls == theirs["supports_tool_calls"]
    assert wants.object_arguments == theirs["supports_object_arguments"]


def test_the_tokens_are_those_of_transformers_text(tiny: Model) -> None:
    for kind, source in KINDS.items():
        chat = chat_format(tiny, TemplateOptions(chat_template=source))
        text = TRANSFORMERS[kind]["two turns"]
        messages = [message_from_json(each) for each in SCENES["two turns"]["messages"]]
        expected = tokenize(tiny, text.removeprefix(BOS), add_special=True)
        if is_whole(text, SCENES["two turns"]):
            assert chat.tokens(chat.render(messages)) == expected, kind


@pytest.mark.parametrize("kind", ["mistral_v1", "gemma", "phi3_first"])
def test_a_system_message_that_was_moved_is_spoken_of(kind: str) -> None:
    found = ours(kind, "system")
    assert found and found.notes and not found.lost
