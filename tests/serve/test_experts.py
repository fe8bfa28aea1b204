"""Which experts speak: what the routers chose, and messages that go through one expert alone."""

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from moe_gguf.runner.engine import Engine, Part
from moe_gguf.runner.load_options import LoadOptions
from moe_gguf.runner.model import Model, tokenize
from moe_gguf.runner.rerouting import rerouted, to_expert
from moe_gguf.runner.routing_tap import RoutingTap
from moe_gguf.runner.sampling import Sampler, SamplingOptions
from moe_gguf.runner.tap import capture

from ..loaded_models import ONE_THREAD
from ..runner.tiny_gguf import N_EXPERT, N_LAYER

OPTIONS = LoadOptions(
    n_ctx=256, n_batch=64, n_ubatch=16, n_threads=1, n_gpu_layers=0, flash_attn="off", n_seq_max=2, repack=False
)
TEXT = "the cat and the hat in a land that had a thin can"


def tapped(tiny: Model) -> tuple[Engine, RoutingTap]:
    tap = RoutingTap(N_LAYER, N_EXPERT, 2)
    engine = Engine(tiny, OPTIONS, tap.on_eval)
    tap.measure(engine.n_batch, engine.n_ubatch)
    return engine, tap


def test_routes_are_those_that_the_graph_computes(tiny: Model) -> None:
    tokens = tokenize(tiny, TEXT)
    last = len(tokens) - 1
    assert last > OPTIONS.n_ubatch
    seen = capture(tiny, ONE_THREAD, tokens, lambda name: name.startswith(("ffn_moe_topk-", "ffn_moe_weights-")))
    engine, tap = tapped(tiny)
    with engine:
        tap.listen(len(tokens), [last], [2, last])
        engine.decode([Part(0, 0, tokens, Sampler(tiny, SamplingOptions()), None)])
        for row, layers in ((2, N_LAYER - 1), (last, N_LAYER)):  # the last layer is computed for outputs only
            routing = tap.routing(row)
            for layer in range(layers):
                weights = seen[f"ffn_moe_weights-{layer}"][row].ravel()
                assert routing.experts[layer].tolist() == seen[f"ffn_moe_topk-{layer}"][row].tolist()
                np.testing.assert_allclose(routing.weights[layer], weights / weights.sum(), rtol=1e-5)
        assert abs(sum(share for _, share in tap.routing(last).shares()) - 1) < 1e-6


def test_each_sequence_of_a_batch_goes_its_own_way(tiny: Model) -> None:
    tokens = tokenize(tiny, TEXT)[:14]
    expected = {}
    for expert in (1, 3):
        with rerouted(tiny, OPTIONS, to_expert(expert, N_EXPERT)) as alone:
            expected[expert] = alone.decode_all(0, tokens)[-1].copy()
    engine, tap = tapped(tiny)
    with engine:
        tap.listen(28, [13, 27], [13, 27], [(0, 14, 1), (14, 28, 3)])
        parts = [Part(0, sequence, tokens, Sampler(tiny, SamplingOptions()), None) for sequence in (0, 1)]
        rows = engine.decode(parts)
        assert [tap.routing(row).shares() for row in rows] == [[(1, 1.0)], [(3, 1.0)]]
        for row, expert in zip(rows, (1, 3), strict=True):
            np.testing.assert_allclose(engine.logits(row), expected[expert], atol=1e-4)


def test_a_stream_names_the_experts_of_every_token(http: httpx.Client) -> None:
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": TEXT}], "max_tokens": 9, "stream": True, "x_experts": "layers",
        "ignore_eos": True,
    }  # fmt: skip
    lines = [line[6:] for line in http.post("/v1/chat/completions", json=body).text.splitlines() if line[:5] == "data:"]
    chunks = [json.loads(line) for line in lines[:-1]]
    entries = [entry for chunk in chunks for entry in chunk.get("x_experts", ())]
    assert lines[-1] == "[DONE]" and len(entries) == 9
    for entry in entries:
        assert abs(sum(entry["weights"]) - 1) < 1e-3 and entry["weights"] == sorted(entry["weights"], reverse=True)
        assert len(entry["layers"]) == N_LAYER and all(len(layer) == 2 for layer in entry["layers"])


def test_one_expert_alone_speaks_for_itself(http: httpx.Client) -> None:
    said = {}
    for expert in (None, 0, 1, None, 0):
        body = {
            "messages": [{"role": "user", "content": TEXT}], "max_tokens": 12, "temperature": 0, "x_experts": True,
            "ignore_eos": True,
            **({} if expert is None else {"x_only_expert": expert}),
        }  # fmt: skip
        answer = http.post("/v1/chat/completions", json=body).json()
        text = answer["choices"][0]["message"]["content"]
        assert said.setdefault(expert, text) == text  # what other routes left in the cache is not taken for one's own
        if expert is not None:
            assert all(entry["experts"] == [expert] for entry in answer["x_experts"])
    assert len(set(said.values())) == 3


def test_experts_that_are_not_there_are_refused(http: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "x_only_expert": N_EXPERT}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "x_only_expert"


def test_props_describe_the_mixture(http: httpx.Client, tiny_path: Path) -> None:
    found = http.get("/props")
    mixture = found.json()["x_model"]
    assert (mixture["n_expert"], mixture["n_expert_used"], mixture["n_layer"]) == (N_EXPERT, 2, N_LAYER)
    assert mixture["n_params_active"] < mixture["n_params"] and mixture["n_ctx"] == 2048
    assert str(tiny_path.parent) not in found.text
