"""Anthropic's API, asked by its own client."""

import anthropic
import pytest

GREEDY = {"temperature": 0}
QUESTION: list[anthropic.types.MessageParam] = [{"role": "user", "content": "the cat and the hat"}]
TOOLS: list[anthropic.types.ToolParam] = [
    {"name": "no", "input_schema": {"type": "object", "properties": {}, "additionalProperties": False}}
]


@pytest.fixture
def client(address: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=address, api_key="any", max_retries=0)


def test_a_message_whole_and_streamed(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(model="tiny", messages=QUESTION, system="be", max_tokens=12, extra_body=GREEDY)
    (block,) = whole.content
    assert block.type == "text" and whole.stop_reason in ("max_tokens", "end_turn")
    with client.messages.stream(
        model="tiny", messages=QUESTION, system="be", max_tokens=12, extra_body=GREEDY
    ) as stream:
        assert "".join(stream.text_stream) == block.text
        final = stream.get_final_message()
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert (final.usage.cache_read_input_tokens or 0) > 0


def test_a_tool_is_used(client: anthropic.Anthropic) -> None:
    with client.messages.stream(
        model="tiny", messages=QUESTION, max_tokens=200, tools=TOOLS, tool_choice={"type": "tool", "name": "no"}
    ) as stream:
        final = stream.get_final_message()
    (used,) = final.content
    assert used.type == "tool_use" and used.name == "no" and used.input == {} and final.stop_reason == "tool_use"
    result: anthropic.types.MessageParam = {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": used.id, "content": "none"}],
    }
    answered: anthropic.types.MessageParam = {
        "role": "assistant", "content": [{"type": "tool_use", "id": used.id, "name": "no", "input": {}}]
    }  # fmt: skip
    again = client.messages.create(model="tiny", messages=[*QUESTION, answered, result], tools=TOOLS, max_tokens=4)
    assert again.role == "assistant"


def test_tokens_are_counted_and_errors_have_their_form(client: anthropic.Anthropic) -> None:
    assert client.messages.count_tokens(model="tiny", messages=QUESTION).input_tokens > 5
    with pytest.raises(anthropic.BadRequestError, match="block"):
        client.messages.create(
            model="tiny",
            max_tokens=4,
            messages=[
                {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "https://a.example"}}]}
            ],
        )
