"""Where each answer has a cache of its own (`-no-kvu`), a seed holds, whoever else is answered."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from gguf import GGMLQuantizationType
from moe_gguf.jobs.loading import LoadRequest
from moe_gguf.serve.models import Models
from moe_gguf.serve.service import opened

from ..runner.tiny_gguf import write_tiny
from .conftest import options, serving

PROMPTS = ["the cat", "a hat " * 20, "the cat and the hat " * 9, "an end " * 30]


def asked(http: httpx.Client, prompt: str, seed: int | None) -> list[Any]:
    fields = {"temperature": 0} if seed is None else {"seed": seed, "temperature": 1}
    body = {"prompt": prompt, "max_tokens": 24, "ignore_eos": True, "logprobs": 1, **fields}
    choice = http.post("/v1/completions", json=body).raise_for_status().json()["choices"][0]
    return [choice["text"], choice["logprobs"]]


@pytest.mark.parametrize("qtype", [None, GGMLQuantizationType.Q8_0])
def test_seeded_answers_are_the_same_in_company(qtype: GGMLQuantizationType | None, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", qtype=qtype)
    load = LoadRequest(n_ctx=2048, n_threads=2, n_gpu_layers=0, kv_unified=False)
    service = opened(path, replace(options(), load=load), "tiny")
    assert service.engine.n_ctx_seq == 512
    try:
        with serving(Models.single(service)) as address, httpx.Client(base_url=address, timeout=60) as http:
            questions = [(prompt, seed) for prompt in PROMPTS for seed in (1, 2, 3)]
            alone = [asked(http, *question) for question in questions]
            others = [(prompt, None) for prompt in PROMPTS]
            crowd = [*questions, *others, *reversed(questions)]
            with ThreadPoolExecutor(12) as pool:
                company = list(pool.map(lambda question: asked(http, *question), crowd))
            assert company[: len(alone)] == alone and company[-len(alone) :] == alone[::-1]
            too_long = http.post("/v1/completions", json={"prompt": [7] * 512})
            assert (too_long.status_code, too_long.json()["error"]["n_ctx"]) == (400, 512)
    finally:
        service.close()
