"""The chat API, asked by OpenAI's own client."""

from typing import Any

import openai
import pytest

ENDLESS = {"ignore_eos": True}
QUESTION: Any = [{"role": "user", "content": "the cat and the hat"}]


@pytest.fixture
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_an_answer_has_its_usage_and_its_seed(client: openai.OpenAI) -> None:
    one, two = (
        client.chat.completions.create(model="tiny", messages=QUESTION, seed=7, max_tokens=12, extra_body=ENDLESS)
        for _ in range(2)
    )
    assert one.choices[0].message.content == two.choices[0].message.content
    assert one.choices[0].finish_reason == "length"
    assert one.usage and one.usage.completion_tokens == 12 and two.usage and two.usage.prompt_tokens_details
    assert two.usage.prompt_tokens_details.cached_tokens == 0  # with a seed only whole units are taken over
    three = client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=1)
    assert three.usage and three.usage.prompt_tokens_details
    assert three.usage.prompt_tokens_details.cached_tokens == three.usage.prompt_tokens - 1


def test_a_stream_says_the_same_as_a_whole_answer(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", messages=QUESTION, seed=3, max_tokens=20)
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=QUESTION, seed=3, max_tokens=20, stream=True, stream_options={"include_usage": True}
        )
    )
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == (whole.choices[0].finish_reason)
    assert chunks[-1].usage and whole.usage and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_log_probabilities_belong_to_the_text(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=QUESTION, seed=3, max_tokens=8, logprobs=True, top_logprobs=3, extra_body=ENDLESS
    )
    entries = answer.choices[0].logprobs and answer.choices[0].logprobs.content
    assert entries and len(entries) == 8
    assert b"".join(bytes(each.bytes or ()) for each in entries).decode("utf-8", "replace") == (
        answer.choices[0].message.content
    )
    assert all(len(each.top_logprobs) == 3 and each.logprob <= each.top_logprobs[0].logprob for each in entries)


def test_several_answers_differ_and_share_the_prompt(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=QUESTION, n=3, max_tokens=8)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3


def test_refusals_are_openai_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=QUESTION, temperature=-1)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="context"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "the " * 3000}])
    with pytest.raises(openai.NotFoundError):
        client.get("/nothing", cast_to=object)
