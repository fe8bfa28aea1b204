"""Tools: calls that must be made, by OpenAI's client, whole and streamed."""

import json
from typing import Any

import openai
import pytest

TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
                "required": ["days"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "no", "parameters": {"type": "object", "additionalProperties": False}}},
]
QUESTION: Any = [{"role": "user", "content": "the weather"}]


@pytest.fixture
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)


def test_a_call_that_must_be_is_made(client: openai.OpenAI) -> None:
    choice: Any = {"type": "function", "function": {"name": "get_weather"}}
    answer = client.chat.completions.create(
        model="tiny", messages=QUESTION, tools=TOOLS, tool_choice=choice, max_tokens=200
    )
    assert answer.choices[0].finish_reason == "tool_calls" and answer.choices[0].message.tool_calls
    (call,) = answer.choices[0].message.tool_calls
    assert call.type == "function" and call.function.name == "get_weather"
    assert 1 <= json.loads(call.function.arguments)["days"] <= 9


def test_a_stream_has_the_call(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=QUESTION, tools=TOOLS, tool_choice="required", max_tokens=200, stream=True
    )
    chunks = [chunk.choices[0] for chunk in stream]
    calls = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
    assert len(calls) == 1 and calls[0].id and calls[0].index == 0 and calls[0].function
    assert calls[0].function.name in ("get_weather", "no") and calls[0].function.arguments
    assert chunks[-1].finish_reason == "tool_calls"
    assert not any(chunk.delta.content for chunk in chunks)


def test_results_go_back(client: openai.OpenAI) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "no", "arguments": "{}"}}
    messages: Any = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "none"},
    ]
    answer = client.chat.completions.create(model="tiny", messages=messages, tools=TOOLS, max_tokens=3)
    assert answer.choices[0].message.role == "assistant"


def test_answers_keep_to_a_schema(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 5}}, "required": ["n"]}
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "number", "schema": schema}}
    answer = client.chat.completions.create(model="tiny", messages=QUESTION, response_format=wanted, max_tokens=100)
    assert 1 <= json.loads(answer.choices[0].message.content or "")["n"] <= 5


def test_tools_that_are_none_are_refused(client: openai.OpenAI) -> None:
    other: Any = {"type": "function", "function": {"name": "other"}}
    with pytest.raises(openai.BadRequestError, match="other"):
        client.chat.completions.create(model="tiny", messages=QUESTION, tools=TOOLS, tool_choice=other)
    bad: Any = [{"type": "function"}]
    with pytest.raises(openai.BadRequestError, match="a tool is"):
        client.chat.completions.create(model="tiny", messages=QUESTION, tools=bad)
