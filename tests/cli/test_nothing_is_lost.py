"""What a user has is never overwritten or removed by accident, with --force neither; odd bytes end in one line."""

import os
import sys
from pathlib import Path

import pytest
from moe_gguf.merge.gates import save_gates
from moe_gguf.merge.regate import read_routers
from moe_gguf.runner.conversation import load, save
from moe_gguf.runner.templates.message import Message

from ..command import Outcome, moe_gguf
from ..merge.cases import CASES, write_case
from ..merge.tiny_gguf import write_gguf_of


def refused(outcome: Outcome, *words: str, status: int = 1) -> None:
    assert outcome.status == status, outcome.stderr
    assert "Traceback" not in outcome.stderr and all(word in outcome.stderr for word in words), outcome.stderr


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOE_GGUF_CACHE", str(tmp_path / "cache"))
    path = write_case(tmp_path, CASES["mixtral-mistral"])
    path.write_text(path.read_text().replace('"hidden"', '"random"'))
    return path


def test_merge_keeps_what_is_no_part_of_a_checkpoint(recipe: Path, tmp_path: Path) -> None:
    assert moe_gguf("merge", recipe, "-o", tmp_path / "out").status == 0
    assert moe_gguf("merge", recipe, "-o", tmp_path / "out", "-f").status == 0
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    refused(moe_gguf("merge", recipe, "-o", tmp_path / "out", "-f"), "thesis.txt")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_merge_keeps_a_folder_that_only_looks_unfinished(recipe: Path, tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "thesis.txt").write_text("mine")
    refused(moe_gguf("merge", recipe, "-o", tmp_path / "out"), "out.partial", "in the way")
    assert (partial / "thesis.txt").read_text() == "mine"


def test_regate_and_calibrate_keep_their_inputs(tmp_path: Path) -> None:
    model = write_gguf_of(tmp_path, "mixtral-mistral")
    gates = tmp_path / "gates"
    from moe_gguf.formats.gguf_file import read_gguf

    save_gates(gates, read_routers(read_gguf(model)), {})
    before = gates.read_bytes(), model.read_bytes()
    refused(moe_gguf("regate", model, gates, "-o", gates, "-f"), "output is")
    text = tmp_path / "a.txt"
    text.write_text("a text " * 500)
    named = [f"{name}={text}" for name in "abc"]
    refused(moe_gguf("calibrate", model, "--texts", *named, "-o", model, "-f"), "output is an input")
    refused(moe_gguf("calibrate", model, "--texts", *named, "-o", text, "-f"), "output is an input")
    refused(moe_gguf("calibrate", model, "--texts", *named, "-o", tmp_path / "no" / "gates"), "no such folder")
    assert (gates.read_bytes(), model.read_bytes()) == before


@pytest.mark.parametrize("option", ["--ridge", "--sharpness"])
@pytest.mark.parametrize("value", ["nan", "inf", "-1"])
def test_calibrate_takes_finite_numbers_above_zero(option: str, value: str, tmp_path: Path) -> None:
    refused(moe_gguf("calibrate", "x.gguf", "-o", tmp_path / "gates", option, value), option, status=2)


def test_a_conversation_with_odd_text_is_saved_whole(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    save(path, [Message("user", "odd \udcff")])
    assert load(path) == [Message("user", "odd ?")]


@pytest.mark.parametrize("suffix", [".yml", ".toml"])
def test_deep_nesting_is_one_line(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"deep{suffix}"
    path.write_text("[" * 50_000 if suffix == ".yml" else "a=" + "[" * 50_000)
    arguments = ("merge", path, "--check") if suffix == ".yml" else ("--catalogue", path, "inspect", "x")
    refused(moe_gguf(*arguments), "nested too deeply")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no names that are no text")
def test_a_name_that_is_no_text_can_be_run(tmp_path: Path) -> None:
    model = write_gguf_of(tmp_path, "mixtral-mistral")
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xff.gguf"))
    model.rename(odd)
    outcome = moe_gguf("generate", odd, "-p", "hi", "-n", "2", "-t", "1")
    assert outcome.status == 0, outcome.stderr
