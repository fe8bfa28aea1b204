"""Where each answer has a cache of its own (`-no-kvu`), a seed holds, whoever else is answered."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from moe_gguf.jobs.loading import LoadRequest
from moe_gguf.runner.engine import Engine
from moe_gguf.runner.load_options import LoadOptions
from moe_gguf.runner.model import Model
from moe_gguf.serve.models import Models
from moe_gguf.serve.service import opened

from ..runner.tiny_gguf import write_tiny
from .conftest import options, serving

PROMPTS = ["the cat", "a hat " * 20, "the cat and the hat " * 9, "an end " * 30]


def asked(http: httpx.Client, prompt: str, seed: int | None, **more: Any) -> list[Any]:
    fields = {"temperature": 0} if seed is None else {"seed": seed, "temperature": 1}
    body = {"prompt": prompt, "max_tokens": 24, "ignore_eos": True, "logprobs": 1, **fields, **more}
    answer = http.post("/v1/completions", json=body).raise_for_status().json()
    choice = answer["choices"][0]
    return [choice["text"], choice["logprobs"], answer.get("x_experts"), choice.get("x_experts")]


@pytest.mark.parametrize("qtype", [None, GGMLQuantizationType.Q8_0])
def test_seeded_answers_are_the_same_in_company(qtype: GGMLQuantizationType | None, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", qtype=qtype)
    load = LoadRequest(n_ctx=2048, n_threads=2, n_gpu_layers=0, kv_unified=False)
    service = opened(path, replace(options(), load=load), "tiny")
    assert service.engine.n_ctx_seq == 512
    try:
        with serving(Models.single(service)) as address, httpx.Client(base_url=address, timeout=60) as http:
            plain = [(prompt, seed, {}) for prompt in PROMPTS for seed in (1, 2, 3)]
            heard = [
                (prompt, None, {"x_experts": True, "x_only_expert": only}) for prompt in PROMPTS for only in (None, 1)
            ]
            questions = [*plain, *heard]
            alone = [asked(http, prompt, seed, **more) for prompt, seed, more in questions]
            assert any(alone[-1][2:]) and alone[-1] != alone[-2]
            others = [(prompt, None, {}) for prompt in PROMPTS]
            crowd = [*questions, *others, *reversed(questions)]
            with ThreadPoolExecutor(12) as pool:
                company = list(pool.map(lambda question: asked(http, question[0], question[1], **question[2]), crowd))
            assert company[: len(alone)] == alone and company[-len(alone) :] == alone[::-1]
            too_long = http.post("/v1/completions", json={"prompt": [7] * 512})
            assert (too_long.status_code, too_long.json()["error"]["n_ctx"]) == (400, 512)
    finally:
        service.close()


def test_a_copy_is_made_before_its_source_holds_something_else(tiny_path: Path) -> None:
    """Between caches of their own llama.cpp copies at the next batch: what was restored in between was copied."""
    options = LoadOptions(n_ctx=1024, n_seq_max=2, kv_unified=False, n_threads=1, n_gpu_layers=0)
    one, other = ([270 + (i * step) % 11 for i in range(60)] for step in (3, 5))
    with Model(tiny_path, options) as model, Engine(model, options) as engine:
        engine.decode_all(0, other)
        saved = engine.save(0)
        engine.forget(0)
        expected = engine.decode_all(0, [*one, 281])[-1].copy()
        engine.forget(0)
        engine.decode_all(0, one)
        engine.copy(0, [1])
        assert engine.restore(0, other, saved)
        np.testing.assert_allclose(engine.decode_all(1, [281])[-1], expected, atol=1e-3)
