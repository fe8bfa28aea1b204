"""Where each answer has a cache of its own (`-no-kvu`), a seed holds, whoever else is answered."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
from gguf import GGMLQuantizationType
from moe_gguf.serve.models import Models
from moe_gguf.serve.service import opened

from ..runner.tiny_gguf import write_tiny
from .conftest import LOAD, options, serving

PROMPTS = ["the cat", "a hat " * 20, "the cat and the hat " * 9, "an end " * 30]


def asked(http: httpx.Client, prompt: str, seed: int | None) -> list[Any]:
    fields = {"temperature": 0, "logprobs": 1} if seed is None else {"seed": seed, "temperature": 1}
    body = {"prompt": prompt, "max_tokens": 24, "ignore_eos": True, **fields}
    choice = http.post("/v1/completions", json=body).raise_for_status().json()["choices"][0]
    return [choice["text"], choice["logprobs"]]


def test_answers_are_the_same_in_company(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", qtype=GGMLQuantizationType.Q8_0)
    given = options()
    load = replace(LOAD, n_batch=None, n_ubatch=None, n_threads=2, kv_unified=False)
    service = opened(path, replace(given, load=load), "tiny")
    assert service.engine.n_ctx_seq == 512
    try:
        with serving(Models.single(service)) as address, httpx.Client(base_url=address, timeout=60) as http:
            questions = [(prompt, seed) for prompt in PROMPTS for seed in (None, 1, 2)]
            alone = [asked(http, *question) for question in questions]
            with ThreadPoolExecutor(12) as pool:
                company = list(pool.map(lambda question: asked(http, *question), [*questions, *reversed(questions)]))
            assert company == [*alone, *reversed(alone)]
            too_long = http.post("/v1/completions", json={"prompt": [7] * 512})
            assert (too_long.status_code, too_long.json()["error"]["n_ctx"]) == (400, 512)
    finally:
        service.close()
