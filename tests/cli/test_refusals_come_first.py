"""What is refused is refused before anything is announced or computed; Ctrl-C says what is left."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from moe_gguf.writer import write as writing

from ..command import moe_gguf
from ..merge.cases import CASES, write_case
from ..merge.tiny_gguf import write_gguf_of
from .test_nothing_is_lost import refused


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOE_GGUF_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return write_case(tmp_path, CASES["mixtral-mistral"])


def test_a_target_in_the_way_is_said_before_any_warning(recipe: Path, tmp_path: Path) -> None:
    fields = json.loads(recipe.read_text())
    fields["experts"][0]["source_model"] = fields["base_model"]
    recipe.write_text(json.dumps(fields))
    assert "warning: expert base is the base itself" in moe_gguf("merge", recipe, "--check").stderr
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").touch()
    outcome = moe_gguf("merge", recipe, "-o", "out")
    refused(outcome, "exists already")
    assert outcome.stderr.count("\n") == 1 and not (tmp_path / "cache").exists()


def test_gates_that_could_not_be_saved_are_not_computed(recipe: Path, tmp_path: Path) -> None:
    refused(moe_gguf("merge", recipe, "-o", "out", "--gates", "no/gates"), "there is no folder no for the gates")
    refused(moe_gguf("quantize", recipe, "--type", "Q8_0", "--gates", "no/gates"), "there is no folder no")
    assert not (tmp_path / "cache").exists()


def test_quantize_announces_nothing_that_it_refuses(tmp_path: Path) -> None:
    model = write_gguf_of(tmp_path, "mixtral-mistral")
    target = tmp_path / "q.gguf"
    outcome = moe_gguf("quantize", model, "--type", "Q8_0", "-o", target)
    assert outcome.status == 0 and "23 tensors to" in outcome.stderr
    outcome = moe_gguf("quantize", model, "--type", "Q8_0", "-o", target)
    refused(outcome, "exists already")
    assert "tensors to" not in outcome.stderr


def test_a_missing_llama_cpp_is_noticed_before_anything_is_written(tmp_path: Path) -> None:
    model = write_gguf_of(tmp_path, "mixtral-mistral")
    recipe = str(tmp_path / "models" / "recipe.yml")
    environment = {"LLAMA_CPP_LIB_PATH": str(tmp_path / "nowhere"), "MOE_GGUF_CACHE": str(tmp_path / "cache")}
    for arguments in (
        ["quantize", str(model), "--type", "Q8_0", "-o", "q.gguf", "--verify"],
        ["quantize", recipe, "--type", "Q8_0", "-o", "q.gguf"],
        ["merge", recipe, "-o", "out"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", "from moe_gguf.cli import main; main()", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **environment},
        )
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and "check LLAMA_CPP_LIB_PATH" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"merge.gguf", "models"}


def test_an_empty_list_of_experts(tmp_path: Path) -> None:
    path = tmp_path / "r.yml"
    path.write_text("base_model: b\nexperts: []\n")
    refused(moe_gguf("merge", path, "--check"), "experts names no expert; a mixture is made of at least one")
    path.write_text("base_model: b\nexperts:\n- source_model: b\n  positive_prompts: [a]\n")
    refused(moe_gguf("merge", path, "--check"), "1 expert for 2 experts per token")


def interrupted(*arguments: str | Path) -> str:
    outcome = moe_gguf(*arguments)
    assert outcome.status == 130
    return outcome.stderr.splitlines()[-1]


def stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_before_the_first_byte(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_gguf_of(tmp_path, "mixtral-mistral")
    monkeypatch.setattr("moe_gguf.quantize.kernels.warm_up", stop)
    assert (
        interrupted("quantize", model, "--type", "Q8_0", "-o", "q.gguf")
        == "moe-gguf: interrupted; no model was written"
    )
    monkeypatch.setattr("moe_gguf.jobs.gates.compute_gates", stop)
    assert interrupted("merge", recipe, "-o", "out") == "moe-gguf: interrupted; no model was written"
    assert not list(tmp_path.glob("q.gguf*")) and not list(tmp_path.glob("out*"))


def test_ctrl_c_before_the_first_slab_and_while_files_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, target = write_gguf_of(tmp_path, "mixtral-mistral"), tmp_path / "q.gguf"
    arguments = ("quantize", model, "--type", "Q8_0", "-o", target)
    for method in ("begin", "put"):
        with monkeypatch.context() as patched:
            if method == "begin":
                patched.setattr(writing.PartialOutput, "begin", stop)
            else:
                patched.setattr(writing._Run, "_work", lambda run: None)
                patched.setattr(writing._Run, "_watch", stop)
            assert interrupted(*arguments) == "moe-gguf: interrupted; nothing was written"
            assert not list(tmp_path.glob("q.gguf*"))
    with monkeypatch.context() as patched:
        patched.setattr("moe_gguf.jobs.planning.check_finished", stop)
        assert "run the same command again to finish them" in interrupted(*arguments)
    assert moe_gguf(*arguments).status == 0 and target.is_file()
