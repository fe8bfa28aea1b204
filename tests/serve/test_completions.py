"""Completions, embeddings and texts: OpenAI's client, llama.cpp's forms, and the engine itself."""

import httpx
import numpy as np
import openai
import pytest
from moe_gguf.runner.engine import Engine
from moe_gguf.runner.generation import generate
from moe_gguf.runner.model import Model, tokenize
from moe_gguf.runner.sampling import SamplingOptions
from moe_gguf.serve.service import Service

from ..loaded_models import ONE_THREAD

TEXT = "the cat and the hat in a land"


@pytest.fixture
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0)


def test_a_completion_is_what_the_engine_alone_says(client: openai.OpenAI, tiny: Model) -> None:
    with Engine(tiny, ONE_THREAD) as engine:
        expected = "".join(
            piece.text for piece in generate(engine, tokenize(tiny, TEXT), SamplingOptions(seed=5), n_predict=16)
        )
    answer = client.completions.create(model="tiny", prompt=TEXT, seed=5, max_tokens=16)
    assert answer.choices[0].text == expected
    stream = client.completions.create(model="tiny", prompt=TEXT, seed=5, max_tokens=16, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == expected


def test_several_prompts_have_several_answers(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="tiny", prompt=["the cat", "a land"], n=2, max_tokens=4, logprobs=2, extra_body={"ignore_eos": True}
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    for choice in answer.choices:
        assert choice.logprobs and choice.logprobs.tokens and len(choice.logprobs.tokens) == 4
        assert choice.logprobs.top_logprobs and all(len(top) <= 2 for top in choice.logprobs.top_logprobs)
    assert answer.usage and answer.usage.completion_tokens == 16


def test_a_bias_forces_and_a_stop_ends(client: openai.OpenAI, service: Service) -> None:
    (token,) = tokenize(service.model, "th", add_special=False)[-1:]
    forced = client.completions.create(
        model="tiny", prompt=TEXT, max_tokens=3, logit_bias={str(token): 100}, temperature=0
    )
    assert forced.choices[0].text == "ththth"
    stopped = client.completions.create(
        model="tiny", prompt=TEXT, max_tokens=9, logit_bias={str(token): 100}, temperature=0, stop=["hth"]
    )
    assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == ("t", "stop")


def test_llamacpps_form(http: httpx.Client) -> None:
    body = {"prompt": TEXT, "n_predict": 5, "seed": 4, "ignore_eos": True, "n_probs": 2, "return_tokens": True}
    whole = http.post("/completion", json=body).json()
    assert whole["stop"] and whole["stop_type"] == "limit" and whole["tokens_predicted"] == 5
    assert len(whole["tokens"]) == len(whole["completion_probabilities"]) == 5
    settings = whole["generation_settings"]
    assert settings["seed"] == 4 and {"token": 2, "bias": None} in settings["logit_bias"]
    assert http.post("/detokenize", json={"tokens": whole["tokens"]}).json()["content"] == whole["content"]
    fields = http.post("/completion", json=body | {"response_fields": ["content", "timings/predicted_n"]}).json()
    assert fields == {"content": whole["content"], "timings/predicted_n": 5}


def test_a_wrapped_prompt_is_its_text(http: httpx.Client) -> None:
    def said(prompt: object) -> object:
        answer = http.post("/completion", json={"prompt": prompt, "n_predict": 4, "seed": 1})
        return answer.json()["content"] if answer.status_code == 200 else answer.status_code

    assert said({"prompt_string": TEXT}) == said(TEXT) != 400
    assert said({"prompt_string": TEXT, "multimodal_data": ["AAAA"]}) == said({"text": TEXT}) == said([None]) == 400


def test_tokens_and_back(http: httpx.Client, tiny: Model) -> None:
    tokens = http.post("/tokenize", json={"content": TEXT}).json()["tokens"]
    assert tokens == tokenize(tiny, TEXT, add_special=False)
    assert http.post("/detokenize", json={"tokens": tokens}).json()["content"].strip() == TEXT
    pieces = http.post("/tokenize", json={"content": "ä", "with_pieces": True}).json()["tokens"]
    assert [each["piece"] for each in pieces][-2:] == [[0xC3], [0xA4]]
    messages = [{"role": "user", "content": "hi"}]
    prompt = http.post("/apply-template", json={"messages": messages}).json()["prompt"]
    assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_embeddings_are_vectors_of_length_1_that_tell_texts_apart(client: openai.OpenAI) -> None:
    one, two, again = (
        np.array(client.embeddings.create(model="tiny", input=text).data[0].embedding) for text in (TEXT, "a can", TEXT)
    )
    assert abs(np.linalg.norm(one) - 1) < 1e-5 and np.allclose(one, again, atol=1e-6)
    assert float(one @ two) < 0.999
    many = client.embeddings.create(model="tiny", input=[TEXT, "a can"], encoding_format="float", dimensions=8)
    assert len(many.data) == 2 and len(many.data[1].embedding) == 8


def test_metrics_and_slots_count_and_show_no_prompt(http: httpx.Client) -> None:
    def counted(name: str) -> float:
        lines = http.get("/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"llamacpp:{name} "))

    before = counted("tokens_predicted_total")
    http.post("/completion", json={"prompt": "secret sauce", "n_predict": 4, "ignore_eos": True})
    assert counted("tokens_predicted_total") == before + 4 and counted("n_decode_total") > 0
    slots = http.get("/slots")
    assert len(slots.json()) == 4 and "secret" not in slots.text + http.get("/metrics").text
