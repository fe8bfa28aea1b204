"""Templates taken apart: what Go's text/template makes of them is what transformers makes of the original."""

import json
from pathlib import Path

import pytest
from moe_gguf.release.ollama import ollama_files
from moe_gguf.runner.templates.source import Template

from ..oracles.go_templates import GOLDEN, METADATA, NAMES, case_of
from ..runner.templates.kind_cases import BOS, KINDS, SCENES

GO = json.loads(GOLDEN.read_text("utf-8"))
RENDERED = Path(__file__).parents[1] / "runner" / "templates" / "golden" / "transformers.json"
TRANSFORMERS = json.loads(RENDERED.read_text("utf-8"))
# Their templates refuse or lose a system message: it goes before the first question.
WITHOUT_SYSTEM = {"gemma", "gemma_3", "mistral_nemo", "mistral_v1", "phi3_first"}


@pytest.mark.parametrize("kind", KINDS)
def test_go_says_what_transformers_says(kind: str) -> None:
    ollama = ollama_files(Template(KINDS[kind], kind), METADATA)
    assert ollama.template == (GO[kind]["template"] if kind in GO else None)
    for name in NAMES if ollama.template else ():
        if name == "system" and kind in WITHOUT_SYSTEM:
            assert "Be brief.\n\nthe cat" in GO[kind]["texts"][name]
        else:
            assert GO[kind]["texts"][name] == TRANSFORMERS[kind][name].replace(BOS, "")


def test_most_kinds_can_be_said_in_go() -> None:
    assert len(GO) >= 26 and {"chatml", "llama3", "zephyr", "mistral_v1", "gemma"} <= set(GO)


def test_a_modelfile_names_the_file_and_where_answers_end() -> None:
    ollama = ollama_files(
        Template(KINDS["chatml_default_system"], "x"),
        METADATA | {"general.sampling.temp": 0.7, "general.sampling.top_k": 40},
    )
    assert ollama.system == "You are helpful."
    assert json.loads(ollama.files()["params"]) == {"stop": ["<|im_end|>"], "temperature": 0.7, "top_k": 40}
    lines = ollama.modelfile("X-Q4_K_M.gguf").splitlines()
    assert lines[0] == "FROM ./X-Q4_K_M.gguf"
    assert 'SYSTEM """You are helpful."""' in lines and 'PARAMETER stop "<|im_end|>"' in lines
    assert case_of("", ollama.system, SCENES["plain"]["messages"])["System"] == ollama.system


def test_without_a_template_there_is_nothing_to_say() -> None:
    assert ollama_files(None, METADATA).files() == {}
