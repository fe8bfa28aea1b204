"""A process that loads a model as flags say, once per case: what was planned, what llama.cpp allocated, its tokens."""

import ctypes
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from moe_gguf.cli.loading import load_request
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.formats.llamacpp import listening, llama
from moe_gguf.jobs.loading import available_devices, load_options
from moe_gguf.runner.engine import Engine
from moe_gguf.runner.model import Model
from moe_gguf.runner.placing.dryload import read_allocations
from moe_gguf.runner.placing.memory import read_facts
from moe_gguf.runner.placing.placement import evaluate, measured
from moe_gguf.runner.placing.reasons import flags


def main() -> None:
    """Read a session {"path", "cases": [flags], "prompt", "n_predict"} from stdin, write a list of results."""
    session = json.load(sys.stdin)
    results = [run(Path(session["path"]), case, session) for case in session["cases"]]
    json.dump(results, sys.stdout)


def run(path: Path, values: dict[str, Any], session: dict[str, Any]) -> dict[str, Any]:
    """Plan, load without mapping (so that all weights are counted), and continue the prompt greedily."""
    request = load_request(values)
    devices = available_devices(request)
    file = read_gguf(path)
    facts = read_facts(file)
    # weights in the CPU's own layout give sums in another order, and a worker never has them
    options = replace(load_options(path, request), use_mmap=False, repack=False)
    placement = measured(file, evaluate(facts, devices, options))
    log: list[str] = []
    with listening(lambda _, text: log.append(text)), Model(path, options) as model, Engine(model, options) as engine:
        tokens, logits = greedy(engine.pointer, model.n_vocab, session["prompt"], session["n_predict"])
    return {
        "planned": {name: [m.weights, m.kv, m.compute] for name, m in placement.memory.items()},
        "allocated": {name: list(sizes.values()) for name, sizes in read_allocations("".join(log)).items()},
        "n_gpu_layers": options.n_gpu_layers,
        "overrides": options.tensor_overrides,
        "devices": options.devices,
        "n_ctx": options.n_ctx,
        "flags": flags(placement),
        "tokens": tokens,
        "logits": logits,
    }


def greedy(context: Any, n_vocab: int, prompt: list[int], n_predict: int) -> tuple[list[int], list[float]]:
    """Return the most likely continuation by llama.cpp alone, and the first logits."""
    api = llama()
    tokens: list[int] = []
    first: list[float] = []
    feed = prompt
    for _ in range(n_predict):
        array = (ctypes.c_int32 * len(feed))(*feed)
        assert api.llama_decode(context, api.llama_batch_get_one(array, len(feed))) == 0
        logits = np.ctypeslib.as_array(api.llama_get_logits_ith(context, -1), (n_vocab,))
        first = first or logits[:32].tolist()
        tokens.append(int(np.argmax(logits)))
        feed = tokens[-1:]
    return tokens, first
