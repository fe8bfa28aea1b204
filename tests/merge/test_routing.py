"""Every way of routing that merges have, in llama.cpp against transformers (goldens: tests/oracles/routing_logits.py).

DeepSeek-MoE's goldens are those of tests/oracles/deepseek_moe.py.
"""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import Keys
from moe_gguf.convert.build_plan import build_plan
from moe_gguf.formats.checkpoint import Checkpoint
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.measure import graph_difference
from moe_gguf.measure.graph_difference import asked_logits, compare, describe_graph_difference
from moe_gguf.merge.gates import Gates
from moe_gguf.merge.open import open_recipe
from moe_gguf.merge.recipe import read_recipe
from moe_gguf.runner.engine import Engine
from moe_gguf.runner.load_options import LoadOptions
from moe_gguf.runner.losses import all_logits
from moe_gguf.runner.model import Model
from moe_gguf.runner.verify import verify_gguf

from .cases import gates_of, write_case
from .routing_cases import OTHERWISE, ROUTINGS, SAME, TOKENS, Routing
from .tiny_gguf import convert

GOLDEN = np.load(Path(__file__).parent / "golden" / "routing.npz")
OPTIONS = LoadOptions(
    n_ctx=64, n_ubatch=64, flash_attn="off", cache_type_k="f32", cache_type_v="f32", n_threads=1, n_gpu_layers=0
)
TOLERANCE = 5e-5
SAID = re.compile(r"differ by ([\d.]+) % \(KL divergence ([\d.e-]+) nats a token, (\d+) % same first choice\)")


def merged(folder: Path, routing: Routing) -> Checkpoint:
    """Open a merge with the golden's gates and its changes of config.json."""
    recipe = read_recipe(write_case(folder, routing.case))
    every, n_expert = gates_of(routing.case), routing.case.n_expert
    checkpoint = open_recipe(recipe, Gates(every[:, :n_expert], every[:, n_expert:] if recipe.shared_experts else None))
    return replace(checkpoint, config={**checkpoint.config, **routing.overrides})


def as_gguf(folder: Path, routing: Routing) -> Path:
    (folder / "models").mkdir()
    return convert(merged(folder / "models", routing), folder / "merge.gguf")


def plain_logits(model: Model) -> np.ndarray:
    with Engine(model, OPTIONS) as engine:
        return all_logits(engine, 0, TOKENS)


@pytest.mark.parametrize("name", SAME)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    path = as_gguf(tmp_path, SAME[name])
    file = read_gguf(path)
    assert file.architecture == SAME[name].graph
    assert file.hyper(Keys.LLM.EXPERT_WEIGHTS_NORM) is None
    with Model(path, OPTIONS) as model:
        np.testing.assert_allclose(plain_logits(model), GOLDEN[name], atol=TOLERANCE)
    assert describe_graph_difference(path) is None
    assert verify_gguf(path) == []


@pytest.mark.parametrize("name", OTHERWISE)
def test_the_routing_that_was_asked_for_gives_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    path = as_gguf(tmp_path, OTHERWISE[name])
    assert read_gguf(path).architecture == OTHERWISE[name].graph
    with Model(path, OPTIONS) as model:
        np.testing.assert_allclose(asked_logits(model, OPTIONS, TOKENS), GOLDEN[name], atol=TOLERANCE)
        assert np.abs(plain_logits(model) - GOLDEN[name]).max() > 1000 * TOLERANCE


@pytest.mark.parametrize("name", OTHERWISE)
def test_what_is_said_is_the_difference_to_transformers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = as_gguf(tmp_path, OTHERWISE[name])
    monkeypatch.setattr(graph_difference, "tokenize", lambda *_: TOKENS)
    monkeypatch.setattr(graph_difference, "OPTIONS", OPTIONS)
    line = describe_graph_difference(path)
    assert line and line.startswith("llama.cpp runs this file ")
    said = SAID.search(line)
    assert said, line
    with Model(path, OPTIONS) as model:
        expected = compare(plain_logits(model), GOLDEN[name])
    assert float(said[1]) == pytest.approx(100 * expected.rms, abs=0.06)
    assert float(said[2]) == pytest.approx(expected.kl, rel=0.06)
    assert float(said[3]) == pytest.approx(100 * expected.same_top, abs=0.6)


@pytest.mark.parametrize("name", ROUTINGS)
def test_a_warning_when_planned_is_one_about_routing(name: str, tmp_path: Path) -> None:
    warnings = build_plan(merged(tmp_path, ROUTINGS[name])).warnings
    assert [warning.count("renormalize") for warning in warnings] == [1] * (name in OTHERWISE)
