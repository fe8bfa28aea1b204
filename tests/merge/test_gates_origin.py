"""Gates are of one recipe: a file that was computed from other prompts, texts, models or modes is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from moe_gguf.merge.gates import Gates, load_gates, save_gates
from safetensors import safe_open

from .cases import CASES, write_case
from .test_commands import fails, folder, passes, texts
from .tiny_models import Dense, write_dense

__all__ = ["folder"]


def stale(folder: Path, capsys: pytest.CaptureFixture[str], **changes: object) -> str:
    """Change the recipe, try to use the gates of the old one, and return why they were refused."""
    recipe = folder / "recipe.yml"
    before = recipe.read_text()
    recipe.write_text(json.dumps(json.loads(before) | changes))
    message = fails(["quantize", str(recipe), "--type", "Q8_0", "-o", "new.gguf", "--gates", "gates"], capsys)
    recipe.write_text(before)
    assert "remove it to compute them again" in message and not (folder / "new.gguf").exists()
    return message


def test_gates_of_another_recipe_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_case(folder, CASES["qwen2"])
    passes(["merge", str(recipe), "-o", "one", "--gates", "gates", "--gate-base", "f32"])
    saved = (folder / "gates").read_bytes()
    fields = json.loads(recipe.read_text())
    experts, shared = fields["experts"], fields["shared_experts"]
    changed = [experts[0], experts[1] | {"positive_prompts": ["something else"]}, experts[2]]
    assert "the prompts or texts of expert expert-1 differ" in stale(folder, capsys, experts=changed)
    changed = [*experts[:2], experts[2] | {"negative_prompts": ["not this"]}]
    assert "of expert expert-2 differ" in stale(folder, capsys, experts=changed)
    assert "of expert expert-1 differ" in stale(folder, capsys, experts=[experts[1], experts[0], experts[2]])
    assert "it had expert 2" in stale(folder, capsys, experts=experts[:2])
    changed = [shared[0] | {"positive_prompts": ["another"]}]
    assert "of expert base differ" in stale(folder, capsys, shared_experts=changed)
    assert "gate_mode was hidden, is hidden_avg" in stale(folder, capsys, gate_mode="hidden_avg")
    assert "gate_mode was hidden, is random" in stale(folder, capsys, gate_mode="random")
    message = fails(["merge", str(recipe), "--check", "--gates", "gates", "--gate-base", "bf16"], capsys)
    assert "gate_base was f32, is bf16" in message
    write_dense(folder / "base", Dense("qwen2", tied=True, seed=99))
    assert "its base's weights or tokenizer differ" in stale(folder, capsys)
    assert (folder / "gates").read_bytes() == saved


def test_gates_follow_a_recipe_that_moves_no_router(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_case(folder, CASES["mixtral-mistral"])
    passes(["merge", str(recipe), "-o", "one", "--gates", "gates"])
    fields = json.loads(recipe.read_text())
    fields |= {"gate_mode": "hidden_last", "experts_per_token": 1, "dtype": "float32"}
    for number, entry in enumerate(fields["experts"]):
        entry["name"] = f"another name {number}"
    shutil.move(folder / "base", folder / "moved")
    fields["base_model"] = "moved"
    recipe.write_text(json.dumps(fields))
    capsys.readouterr()
    passes(["merge", str(recipe), "-o", "two", "--gates", "gates"])
    assert "gates" not in capsys.readouterr().err


def test_calibrated_gates_are_of_texts_and_experts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = texts(folder)
    recipe = write_case(folder, CASES["mixtral-mistral"])
    fields = json.loads(recipe.read_text()) | {"gate_mode": "calibrated"}
    for index, entry in enumerate(fields["experts"]):
        entry["positive_texts"] = [given[index].partition("=")[2]]
    recipe.write_text(json.dumps(fields))
    passes(["merge", str(recipe), "-o", "out", "--gates", "gates"])
    passes(["merge", str(recipe), "-o", "again", "--gates", "gates"])
    assert "experts_per_token was 2, is 1" in stale(folder, capsys, experts_per_token=1)
    write_dense(folder / "expert-2", Dense("mistral", seed=99))
    assert "the weights of expert expert-2 differ" in stale(folder, capsys)
    Path(fields["experts"][0]["positive_texts"][0]).write_text("other words " * 40)
    assert "the prompts or texts of expert expert-0 differ" in stale(folder, capsys)


def test_gates_that_do_not_say_what_they_are_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_case(folder, CASES["mixtral-mistral"])
    passes(["merge", str(recipe), "-o", "one", "--gates", "gates"])
    gates = load_gates(folder / "gates")
    capsys.readouterr()
    for notes, warns in (({"gate_mode": "hidden", "recipe": "recipe"}, True), ({"model": "m", "texts": "t"}, False)):
        save_gates(folder / "gates", gates, notes)
        passes(["merge", str(recipe), "--check", "--gates", "gates"])
        assert ("does not say what its gates were computed from" in capsys.readouterr().err) == warns


def test_a_gates_file_is_the_same_each_time(tmp_path: Path) -> None:
    gates = Gates(np.ones((12, 2, 8), np.float32), np.ones((12, 1, 8), np.float32))
    for name in ("one", "two"):
        save_gates(tmp_path / name, gates, {f"note {i}": str(i) for i in range(12)})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    with safe_open(tmp_path / "one", "np") as theirs:
        assert len(theirs.keys()) == 24 and theirs.metadata()["note 7"] == "7"
        assert np.array_equal(theirs.get_tensor("blk.11.ffn_gate_inp.weight"), gates.routers[11])
