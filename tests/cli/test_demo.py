"""The demo from end to end: real weights, real experts, three quantizations, a pinned answer, and its routing."""

import json
from inspect import getsource
from json import decoder
from pathlib import Path

import numpy as np
import pytest
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.jobs.demo import EXPERTS, NAME, QUESTION, TYPES
from moe_gguf.quantize.file_types import parse_file_type
from moe_gguf.runner.load_options import LoadOptions
from moe_gguf.runner.model import Model, tokenize
from moe_gguf.runner.rerouting import rerouted_losses, to_expert

from ..command import moe_gguf
from ..quantize.oracle import quantize_file

ANSWER = "The capital of France is Paris."
TEXTS = Path(__file__).parent / "texts"
KINDS = {"python": getsource(decoder), **{path.stem: path.read_text(encoding="utf-8") for path in TEXTS.iterdir()}}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run the demo once; return its folder and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    outcome = moe_gguf("demo", "-o", folder)
    assert outcome.status == 0, outcome.stderr
    return folder, outcome.stdout


def test_it_shows_the_commands_and_answers(demo: tuple[Path, str]) -> None:
    _, printed = demo
    commands = [line.split()[2] for line in printed.splitlines() if line.startswith("$ moe-gguf ")]
    assert commands == ["merge", "convert", "quantize", "inspect", "generate"]
    assert QUESTION in printed and ANSWER in printed


def test_prompts_go_to_their_experts(demo: tuple[Path, str]) -> None:
    shares = {
        line.split(":")[0].strip(): dict(part.rsplit(" ", 1) for part in line.split(": ")[1].split(", "))
        for line in demo[1].splitlines()
        if line.startswith("  a ")
    }
    share = {text: {name: int(value.rstrip("%")) for name, value in row.items()} for text, row in shares.items()}
    assert share["a Python prompt"]["python"] > 80
    assert share["a German prompt"]["german"] > 80


def test_every_variant_is_there_and_a_second_run_makes_nothing_anew(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    made = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.gguf")}
    assert sorted(made) == sorted(f"{NAME}-{name}.gguf" for name in (*TYPES, "BF16"))
    again = moe_gguf("demo", "-o", folder)
    assert again.status == 0 and ANSWER in again.stdout
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.gguf")} == made


def test_the_recipe_gives_what_the_converted_file_gives(demo: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = demo
    outcome = moe_gguf("quantize", folder / f"{NAME}-BF16.gguf", "--type", "Q4_K_M", "-o", tmp_path, "-q")
    assert outcome.status == 0, outcome.stderr
    assert (tmp_path / f"{NAME}-Q4_K_M.gguf").read_bytes() == (folder / f"{NAME}-Q4_K_M.gguf").read_bytes()


def test_each_expert_is_the_best_for_its_kind_of_text(demo: tuple[Path, str]) -> None:
    options = LoadOptions(n_ctx=512, n_expert_used=1)
    with Model(demo[0] / f"{NAME}-Q8_0.gguf", options) as model:
        tokens = {kind: tokenize(model, text)[:150] for kind, text in KINDS.items()}
        losses = [
            [rerouted_losses(model, options, tokens[kind], to_expert(expert, 4)).mean() for kind in EXPERTS]
            for expert in range(len(EXPERTS))
        ]
    assert np.argmin(losses, axis=0).tolist() == [0, 1, 2, 3], losses


def test_calibrating_sends_texts_to_their_experts_and_loses_less(demo: tuple[Path, str], tmp_path: Path) -> None:
    for kind, text in KINDS.items():
        (tmp_path / f"{kind}.txt").write_text(text[:2000], encoding="utf-8")
    texts = [f"{kind}={tmp_path / kind}.txt" for kind in EXPERTS]
    model, gates = demo[0] / f"{NAME}-Q8_0.gguf", tmp_path / "gates"
    outcome = moe_gguf("calibrate", model, "--texts", *texts, "-o", gates, "--sharpness", "1", "--json")
    assert outcome.status == 0, outcome.stderr
    report = json.loads(outcome.stdout)
    assert min(report["rounds"][0]["accuracy"]) > 0.95
    before, after = (sum(report["loss"][when].values()) / 4 for when in ("before", "after"))
    assert after < before, report["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Q2_K", "Q3_K_M", "Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"])
def test_llama_cpp_makes_the_same_file(demo: tuple[Path, str], tmp_path: Path, name: str) -> None:
    source = demo[0] / f"{NAME}-BF16.gguf"
    quantize_file(source, tmp_path / "stock.gguf", parse_file_type(name), n_threads=2)
    assert moe_gguf("quantize", source, "--type", name, "-o", tmp_path / "ours.gguf", "-q").status == 0
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "stock.gguf").read_bytes()
    assert read_gguf(tmp_path / "ours.gguf").hyper("{arch}.expert_count") == 4
