"""merge, calibrate and regate at the command line, on tiny models and the real engine."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from moe_gguf.cli.root import run
from moe_gguf.formats.checkpoint import open_checkpoint
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.merge.gates import load_gates
from moe_gguf.merge.regate import read_routers

from .cases import CASES, PROMPTS, write_case
from .tiny_gguf import write_gguf_of


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOE_GGUF_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as left:
        run(arguments)
    assert left.value.code in (1, 2)
    return capsys.readouterr().err


def passes(arguments: list[str]) -> None:
    try:
        run(arguments)
    except SystemExit as left:
        assert not left.code


@pytest.mark.parametrize("mode", ["hidden", "hidden_avg", "cheap_embed", "random"])
def test_merge_writes_a_checkpoint_in_every_mode(folder: Path, mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_case(folder, CASES["mixtral-mistral"])
    recipe.write_text(recipe.read_text().replace('"hidden"', f'"{mode}"'))
    passes(["merge", str(recipe), "-o", "out", "--layout", "fused", "--max-shard-size", "200K", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["tensors"] == 21 and len(report["condition_numbers"]) == 2
    source = open_checkpoint(folder / "out").source
    router = source.read_rows("model.layers.1.mlp.gate.weight", 0, 3)
    assert router.any() and len({row.tobytes() for row in router}) == 3


def test_gates_are_saved_once_and_used_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_case(folder, CASES["qwen2"])
    passes(["merge", str(recipe), "-o", "one", "--gates", "gates", "--gate-base", "f32"])
    gates = load_gates(folder / "gates")
    assert gates.shared is not None and gates.routers.shape == (2, 3, 64)
    np.testing.assert_allclose(np.linalg.norm(gates.routers, axis=-1), 1, rtol=1e-5)
    saved = (folder / "gates").read_bytes()
    shutil.rmtree(folder / "cache")
    passes(["merge", str(recipe), "-o", "two", "--gates", "gates"])
    assert (folder / "gates").read_bytes() == saved and not (folder / "cache").exists()
    assert (folder / "one" / "model.safetensors").read_bytes() == (folder / "two" / "model.safetensors").read_bytes()


def test_check_only_looks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_case(folder, CASES["mixtral-mistral"])
    passes(["merge", str(recipe), "--check"])
    assert "no warnings" in capsys.readouterr().err
    fields = json.loads(recipe.read_text())
    fields["experts"][1]["source_model"] = fields["experts"][0]["source_model"]
    recipe.write_text(json.dumps(fields))
    passes(["merge", str(recipe), "--check", "--json"])
    assert "have the same weights" in json.loads(capsys.readouterr().out)["findings"][0]
    fields["experts"] = fields["experts"][:2]
    recipe.write_text(json.dumps(fields))
    assert "all experts have the same weights" in fails(["merge", str(recipe), "--check"], capsys)
    assert "-o DIR" in fails(["merge", str(write_case(folder, CASES["mixtral-mistral"]))], capsys)


def texts(folder: Path) -> list[str]:
    arguments = []
    for index, prompts in enumerate(PROMPTS):
        path = folder / f"text-{index}.txt"
        path.write_text(" ".join(prompts) * 40)
        arguments.append(f"t{index}={path}")
    return arguments


def test_calibrate_then_regate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_gguf_of(folder, "mixtral-mistral")
    small = ["--tokens", "200", "--held-out", "64", "-c", "64", "--rounds", "2", "--json"]
    passes(["calibrate", str(path), "--texts", *texts(folder), "-o", "gates", *small])
    report = json.loads(capsys.readouterr().out)
    assert len(report["rounds"]) == 2 and min(report["rounds"][1]["accuracy"]) > 0.9
    assert set(report["loss"]["before"]) == {"t0", "t1", "t2"} == set(report["loss"]["after"])
    for index, loads in enumerate(report["rounds"][1]["load"].values()):
        assert sum(loads) == pytest.approx(1, abs=1e-3) and np.argmax(loads) == index
    passes(["regate", str(path), "gates", "-o", "out.gguf"])
    written = read_routers(read_gguf(folder / "out.gguf")).routers
    assert np.array_equal(written, load_gates(folder / "gates").routers)
    capsys.readouterr()
    passes(["calibrate", "out.gguf", "--texts", *texts(folder), "-o", "again", *small])
    assert json.loads(capsys.readouterr().out)["loss"]["before"] == pytest.approx(report["loss"]["after"], abs=1e-4)
    assert not list(folder.glob("*.partial")) and not list(folder.glob("moe-gguf-*"))


def test_calibrate_prints_a_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_gguf_of(folder, "mixtral-mistral")
    numbered = [argument.replace("t", "", 1) for argument in texts(folder)]
    passes(["calibrate", str(path), *numbered, "-o", "gates", "--tokens", "64", "--held-out", "16", "--rounds", "1"])
    out = capsys.readouterr().out
    assert "held-out loss" in out and "accuracy" in out and "gates saved to gates" in out


def test_an_expert_can_have_several_texts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_gguf_of(folder, "mixtral-mistral")
    files = [argument.partition("=")[2] for argument in texts(folder)]
    given = [f"0={files[0]}", f"1={files[1]}", f"2={files[2]}", f"0={files[1]}", f"0={files[2]}"]
    passes(["calibrate", str(path), *given, "-o", "gates", "--tokens", "64", "--held-out", "16", "--json"])
    report = json.loads(capsys.readouterr().out)
    names = ["0", "1", "2", "0-2", "0-3"]
    assert list(report["loss"]["after"]) == names and list(report["rounds"][0]["load"]) == names


def test_a_shard_is_no_place_for_gates(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    passes(["convert", str(write_case(folder, CASES["mixtral-mistral"])), "-o", "m.gguf", "--split-max-size", "100K"])
    shards = sorted(folder.glob("m-0000*"))
    held = shards[1].read_bytes()
    given = ["calibrate", str(shards[0]), *texts(folder), "-o", str(shards[1]), "-f"]
    assert "the output is an input" in fails(given, capsys) and shards[1].read_bytes() == held


def test_what_cannot_be_calibrated_is_one_clear_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write_gguf_of(folder, "mixtral-mistral"))
    given = texts(folder)
    assert "no text for expert 2 of merge.gguf" in fails(["calibrate", path, *given[:2], "-o", "g"], capsys)
    assert "merge.gguf has 3 experts, 0 to 2" in fails(["calibrate", path, *given, given[0], "-o", "g"], capsys)
    assert "write NAME=FILE" in fails(["calibrate", path, "nothing", "-o", "g"], capsys)
    (folder / "empty.txt").write_text("")
    assert "text 1 has 0 tokens" in fails(["calibrate", path, given[0], "1=empty.txt", given[2], "-o", "g"], capsys)
    (folder / "g").write_text("mine")
    assert "exists already" in fails(["calibrate", path, *given, "-o", "g"], capsys)
    assert "is not a gates file" in fails(["calibrate", path, *given, "-o", "g", "-f"], capsys)
    assert (folder / "g").read_text() == "mine"
    (folder / "short.txt").write_text("and so")
    assert "too short to be judged" in fails(["calibrate", path, "0=short.txt", *given[1:], "-o", "n"], capsys)
    assert not (folder / "n").exists()
    dense = str(write_gguf_of(folder, "mixtral-mistral", dense=True))
    assert "not a mixture of experts" in fails(["calibrate", dense, *given, "-o", "new"], capsys)


def test_calibrated_gates_in_a_recipe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = texts(folder)
    recipe = write_case(folder, CASES["mixtral-mistral"])
    fields = json.loads(recipe.read_text()) | {"gate_mode": "calibrated"}
    for index, entry in enumerate(fields["experts"][:2]):
        entry["positive_texts"] = [given[index].partition("=")[2]]
    recipe.write_text(json.dumps(fields))
    passes(["merge", str(recipe), "-o", "out", "--gates", "gates"])
    assert "degenerate" not in capsys.readouterr().err
    gates = load_gates(folder / "gates").routers
    assert gates.shape == (2, 3, 64)
    np.testing.assert_allclose(gates.sum(axis=1), 0, atol=1e-3)


def test_texts_that_are_all_alike_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (same,) = {path.partition("=")[2] for path in texts(folder)[:1]}
    recipe = write_case(folder, CASES["mixtral-mistral"])
    fields = json.loads(recipe.read_text()) | {"gate_mode": "calibrated"}
    for entry in fields["experts"]:
        entry["positive_texts"] = [same]
    recipe.write_text(json.dumps(fields))
    passes(["merge", str(recipe), "-o", "out"])
    assert "texts are too much alike" in capsys.readouterr().err
