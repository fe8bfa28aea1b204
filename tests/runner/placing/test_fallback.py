"""Loads that fail for lack of memory: the steps down, and a real failure in a process with little memory."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from gguf import GGMLQuantizationType
from moe_gguf.formats.errors import EngineError
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.runner.load_options import LoadOptions
from moe_gguf.runner.placing.fallback import load_with_fallback, steps_down
from moe_gguf.runner.placing.memory import locate, read_facts

from ..tiny_moe import write_moe

# 520 MB more than the process has: too little for a cache of 8192 tokens (537 MB), enough for one of 4096
LOAD = """
import resource, sys
from pathlib import Path
import psutil
from moe_gguf.formats.llamacpp import llama
from moe_gguf.cli.terminal import TERMINAL
from moe_gguf.jobs.loading import LoadRequest, load_model
from moe_gguf.runner.placing.devices import list_devices
list_devices()
limit = psutil.Process().memory_info().vms + 520_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
request = LoadRequest(devices=(), n_ctx=int(sys.argv[2]) or None, n_threads=1)
model, engine = load_model(Path(sys.argv[1]), request, TERMINAL)
print(engine.n_ctx)
"""


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    return read_facts(read_gguf(write_moe(tmp_path_factory.mktemp("models") / "tiny.gguf", n_layer=6)))


def test_steps_go_from_experts_to_layers_to_the_context(facts):
    options = LoadOptions(n_ctx=4096, n_gpu_layers=7, devices=("CUDA0",))
    steps = list(steps_down(facts, options, keep_context=False))
    at_home = [sum(d == "CPU" for d in locate(facts, step, step.devices or ()).values()) for step, _ in steps]
    assert at_home == sorted(at_home)
    assert [what for _, what in steps] == [
        "the experts of 3 layers on the CPU",
        "the experts of 5 layers on the CPU",
        "the experts of 6 layers on the CPU",
        "3 layers on devices",
        "1 layers on devices",
        "0 layers on devices",
        "a context of 2048 tokens",
        "a context of 1024 tokens",
        "a context of 512 tokens",
    ]
    kept = [what for _, what in steps_down(facts, options, keep_context=True)]
    assert kept == [what for _, what in steps][:6]


def test_it_stops_at_the_first_load_that_works_and_says_each_step(facts):
    said: list[str] = []

    def load(options: LoadOptions) -> int:
        if options.n_gpu_layers > 3:
            raise EngineError("model.gguf: unable to allocate CUDA0 buffer")
        return options.n_gpu_layers

    made, options = load_with_fallback(load, facts, LoadOptions(n_gpu_layers=7, devices=("CUDA0",)), said.append)
    assert made == options.n_gpu_layers == 3
    assert len(said) == 4
    assert said[0] == "model.gguf: unable to allocate CUDA0 buffer; trying with the experts of 3 layers on the CPU"


def test_other_errors_are_not_tried_again(facts):
    tried: list[LoadOptions] = []

    def load(options: LoadOptions) -> None:
        tried.append(options)
        raise EngineError("unknown model architecture: 'nope'")

    with pytest.raises(EngineError, match="nope"):
        load_with_fallback(load, facts, LoadOptions(), print)
    assert len(tried) == 1


def test_the_last_error_is_raised_when_nothing_helps(facts):
    def load(options: LoadOptions) -> None:
        raise EngineError("failed to allocate the cache")

    with pytest.raises(EngineError, match="failed to allocate the cache"):
        load_with_fallback(load, facts, replace(LoadOptions(), n_ctx=1024, devices=()), lambda _: None)


@pytest.mark.parametrize(
    ("n_ctx", "output", "complaint"), [(0, "4096", ""), (8192, "", "a context of 8192 tokens needs")]
)
def test_a_process_with_little_memory_takes_a_smaller_context_unless_one_was_asked_for(
    tmp_path, n_ctx, output, complaint
):
    path = tmp_path / "wide.gguf"
    shape: dict[str, Any] = {"n_layer": 8, "n_embd": 2048, "n_ff": 256, "n_head": 16, "n_head_kv": 16, "n_expert": 1}
    write_moe(path, **shape, n_ctx_train=8192, qtype=GGMLQuantizationType.Q4_K, weights=False)
    command = [sys.executable, "-c", LOAD, str(path), str(n_ctx)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert process.stdout.strip() == output
    assert complaint in process.stderr and bool(complaint) is bool(process.returncode)
