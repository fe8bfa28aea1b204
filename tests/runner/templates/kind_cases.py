"""Forty kinds of chat templates, as facts about common model families in minimal templates of our own (kinds/).

Each shows what its family's template does with turns, system messages, tools, thoughts and contents, and with which
means of Jinja; none is the family's text. SCENES are the conversations that all of them render.
"""

from pathlib import Path
from typing import Any

BOS, EOS = "<s>", "<|im_end|>"
KINDS = {path.stem: path.read_text("utf-8") for path in sorted((Path(__file__).parent / "kinds").glob("*.jinja"))}

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city, 20° & <sun>.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
_ASK: Any = {"role": "user", "content": "the cat"}
_CALL: Any = {"name": "get_weather", "arguments": {"city": "São Paulo"}}
SCENES: dict[str, dict[str, Any]] = {
    "plain": {"messages": [_ASK]},
    "system": {"messages": [{"role": "system", "content": "Be brief."}, _ASK]},
    "two turns": {"messages": [_ASK, {"role": "assistant", "content": "a hat"}, {"role": "user", "content": "an ant"}]},
    "tools": {
        "messages": [
            _ASK,
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "abcdef123", "type": "function", "function": _CALL}],
            },
            {"role": "tool", "name": "get_weather", "tool_call_id": "abcdef123", "content": "sunny"},
        ],
        "tools": [TOOL],
    },
    "thinking off": {"messages": [_ASK], "values": {"enable_thinking": False}},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "the cat"}]}]},
}
