"""`moe-gguf inspect` on files of real sizes (headers only), tiny real checkpoints, recipes and broken files."""

import json
import re
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from gguf.constants import GGMLQuantizationType, LlamaFileType
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_gguf.formats.gguf_fields import field_of
from moe_gguf.formats.gguf_layout import TensorEntry
from moe_gguf.quantize.facts import facts_of
from moe_gguf.quantize.file_types import parse_file_type
from moe_gguf.quantize.mixes import choose_types
from moe_gguf.quantize.stock_policy import stock

from ..checkpoints import Tiny, write_checkpoint
from ..command import moe_gguf
from ..header_only import MISTRAL_4X7B, MIXTRAL_8X7B, Shape, entries, fields, write_header_only, write_split

SMALL = Shape(n_expert=3, n_layer=2, n_embd=256, n_ff=512, n_head=4, n_head_kv=2, n_vocab=300)

# Sizes in GB and bits per weight that llama.cpp's quantizer arrives at.
KNOWN_SIZES = {
    MIXTRAL_8X7B: {"Q4_K_M": (28.45, 4.87), "Q5_K_M": 33.23, "Q6_K": 38.38, "Q8_0": 49.63, "F16": 93.41},
    MISTRAL_4X7B: {"Q4_K_M": (14.61, 4.84), "Q5_K_M": 17.13, "Q6_K": 19.82, "Q8_0": 25.67, "F16": 48.31},
}


def written(path: Path, shape: Shape) -> Path:
    """Write a header-only BF16 file of this shape."""
    return write_header_only(path, fields(shape), entries(shape))


def report_of(*arguments: str | Path) -> dict[str, Any]:
    """Return what inspect --json prints."""
    outcome = moe_gguf("inspect", "--json", *arguments)
    assert (outcome.status, outcome.stderr) == (0, "")
    return json.loads(outcome.stdout)


def by_name(rows: Sequence[dict[str, Any]], key: str) -> dict[str, dict[str, Any]]:
    """Index the report's rows."""
    return {row[key]: row for row in rows}


@pytest.mark.parametrize("shape", KNOWN_SIZES)
def test_memory_of_known_sizes(shape: Shape, tmp_path: Path) -> None:
    report = report_of(written(tmp_path / "model.gguf", shape))
    rows = by_name(report["memory"]["quantizations"], "type")
    for name, known in KNOWN_SIZES[shape].items():
        size, bpw = known if isinstance(known, tuple) else (known, None)
        assert f"{rows[name]['weights_bytes'] / 1e9:.2f}" == f"{size:.2f}", name
        assert bpw is None or f"{rows[name]['bpw']:.2f}" == f"{bpw:.2f}"
    kv_bytes = 32 * 4096 * 8 * 2 * 128 * 2
    assert (report["memory"]["n_ctx"], report["memory"]["kv_bytes"]) == (4096, kv_bytes)
    assert rows["Q4_K_M"]["total_bytes"] == rows["Q4_K_M"]["weights_bytes"] + kv_bytes
    assert report["parameters"]["active"] < 12.9e9 < report["parameters"]["active"] + 1e8


def test_the_text_explains_the_parameters(tmp_path: Path) -> None:
    mixtral = moe_gguf("inspect", written(tmp_path / "8x7b.gguf", MIXTRAL_8X7B)).stdout
    assert "46.7 B in all, 12.9 B active per token" in mixtral
    assert "Not 8 x 7 B = 56 B: only the experts' feed-forward layers exist 8 times (45.1 B);" in mixtral
    assert re.search(r"Q4_K_M +28\.45 GB +4\.87 +28\.98 GB\n", mixtral)
    assert re.search(r"BF16 +93\.41 GB +16\.00 +93\.95 GB \(this file\)\n", mixtral)
    assert "IQ2_XXS" not in mixtral
    merge = moe_gguf("inspect", "-v", "-c", "0", written(tmp_path / "4x7b.gguf", MISTRAL_4X7B)).stdout
    assert "24.2 B in all" in merge
    assert "Not 4 x 7 B = 28 B" in merge
    assert "Memory at 32768 tokens" in merge
    assert "IQ2_XXS" in merge


def test_the_example_in_the_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    metadata = fields(
        MIXTRAL_8X7B,
        LlamaFileType.MOSTLY_Q4_K_M,
        general__name="Mixtral 8x7B Instruct v0.1",
        tokenizer__chat_template="{{ bos_token }}[INST] {{ messages[0].content }} [/INST]",
    )
    tensors = entries(MIXTRAL_8X7B)
    facts = facts_of({key: field.value for key, field in metadata.items()}, [tensor.name for tensor in tensors])
    choices = choose_types(facts, tensors, stock(parse_file_type("Q4_K_M")))
    path = Path("Mixtral-8x7B-Instruct-v0.1-Q4_K_M.gguf")
    write_header_only(path, metadata, [TensorEntry(one.name, one.shape, one.qtype) for one in choices])
    page = (Path(__file__).parent.parent.parent / "docs" / "inspect.md").read_text(encoding="utf-8")
    assert f"```\n$ moe-gguf inspect {path}\n{moe_gguf('inspect', path).stdout}```\n" in page


def test_columns_are_aligned(tmp_path: Path) -> None:
    text = moe_gguf("inspect", "--tensors", written(tmp_path / "small.gguf", SMALL)).stdout
    assert max(map(len, text.splitlines())) <= 120
    tables = {block.split("\n")[0].split(" at ")[0]: block.split("\n")[1:] for block in text.split("\n\n")}
    assert list(tables)[2:] == ["By role", "By type", "Memory", "Tensors"]
    for title in ("By role", "By type"):
        assert len({len(row) for row in tables[title]}) == 1
    assert tables["Tensors"][1].split() == ["token_embd.weight", "256", "x", "300", "BF16", "153.6", "kB", "embeddings"]
    assert len(tables["Tensors"]) - 1 - 1 == len(entries(SMALL))


def test_json_is_documented(tmp_path: Path) -> None:
    report = report_of(written(tmp_path / "small.gguf", SMALL))
    docs = (Path(__file__).parent.parent.parent / "docs" / "inspect.md").read_text(encoding="utf-8")
    for key in report:
        assert f"`{key}`" in docs, key
    assert by_name(report["tensors"], "name")["blk.1.ffn_down_exps.weight"] == {
        "name": "blk.1.ffn_down_exps.weight",
        "shape": [512, 256, 3],
        "type": "BF16",
        "bytes": 512 * 256 * 3 * 2,
        "role": "experts",
    }
    for shares in (report["roles"], report["types"]):
        assert sum(share["bytes"] for share in shares) == report["bytes"]
        assert sum(share["parameters"] for share in shares) == report["parameters"]["total"]
    assert sum(tensor["bytes"] for tensor in report["tensors"]) == report["bytes"]


def test_a_quantized_file_is_counted_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "old-mix.Q4_K_M.gguf"
    metadata = fields(SMALL, LlamaFileType.MOSTLY_Q4_K_M)
    write_header_only(path, metadata, entries(SMALL, GGMLQuantizationType.Q4_K))
    report = report_of(path)
    rows = by_name(report["memory"]["quantizations"], "type")
    assert report["file_type"] == "Q4_K_M"
    assert rows["Q4_K_M"]["weights_bytes"] == report["bytes"]
    assert rows["F16"]["weights_bytes"] > report["bytes"]


def test_a_split_file(tmp_path: Path) -> None:
    whole = report_of(written(tmp_path / "whole.gguf", SMALL))
    shards = write_split(tmp_path / "split.gguf", fields(SMALL), entries(SMALL), 3)
    split = report_of(shards[0])
    assert split["files"] == [str(shard) for shard in shards]
    assert {**split, "path": "", "files": []} == {**whole, "path": "", "files": []}
    assert "3 files" in moe_gguf("inspect", shards[0]).stdout
    second = moe_gguf("inspect", shards[1])
    assert (second.status, second.stdout) == (1, "")
    assert "name split-00001-of-00003.gguf" in second.stderr
    shards[2].unlink()
    assert "missing shard" in moe_gguf("inspect", shards[0]).stderr


def test_a_file_with_experts_of_their_own(tmp_path: Path) -> None:
    path = written(tmp_path / "old.gguf", Shape(**{**vars(SMALL), "lone_experts": True}))
    report = report_of(path)
    assert "before April 2024" in report["notes"][0]
    assert report["expert_layout"] == "one tensor per expert"
    assert report["parameters"] == report_of(written(tmp_path / "new.gguf", SMALL))["parameters"]
    assert "Note: each expert is a tensor of its own" in moe_gguf("inspect", path).stdout


@pytest.mark.parametrize("layout", ["classic", "fused"])
def test_a_checkpoint(layout: str, tmp_path: Path) -> None:
    tiny = Tiny(layout=layout, cuts=(7,))
    report = report_of(write_checkpoint(tmp_path / "checkpoint", tiny))
    assert (report["kind"], report["file_type"]) == ("checkpoint", "BF16")
    assert report["expert_layout"] == {"classic": "per expert", "fused": "fused"}[layout]
    assert (report["n_expert"], report["n_expert_used"], report["n_layer"]) == (4, 2, 2)
    experts = tiny.n_layer * 4 * 3 * tiny.n_embd * tiny.n_ff
    assert report["parameters"]["experts"] == experts
    assert report["parameters"]["total"] - report["parameters"]["active"] == experts // 2
    assert report["tokenizer"]["tokens"] == 512
    assert len(report["files"]) == 2
    assert report["bytes"] == 2 * report["parameters"]["total"]
    assert "checkpoint of BF16" in moe_gguf("inspect", tmp_path / "checkpoint").stdout


def test_a_recipe_of_local_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "other")):
        write_checkpoint(tmp_path / name, Tiny(layout="dense", seed=seed))
    Path("recipe.yml").write_text(
        "base_model: base\ngate_mode: hidden\nexperts:\n"
        "  - source_model: base\n    positive_prompts: [a]\n"
        "  - source_model: other\n    positive_prompts: [b]\n"
    )
    Path("models.toml").write_text(
        'default = "pair"\n[models.pair]\nbase_model = "base"\n'
        '[[models.pair.experts]]\nsource_model = "base"\npositive_prompts = ["a"]\n'
        '[[models.pair.experts]]\nsource_model = "other"\npositive_prompts = ["b"]\n'
        '[models.afar]\nbase_model = "owner/name"\n'
        '[[models.afar.experts]]\nsource_model = "owner/name"\npositive_prompts = ["a"]\n'
        '[[models.afar.experts]]\nsource_model = "owner/other"\npositive_prompts = ["b"]\n'
        '[models.hub]\nhub = "owner/name"\n'
    )
    for arguments in (("recipe.yml",), ("pair",), ()):
        report = report_of(*arguments)
        assert (report["kind"], report["n_expert"]) == ("recipe", 2)
    made = moe_gguf("inspect", "afar")
    assert "afar: a merge recipe (models.toml:10) that has not been built yet; run moe-gguf convert" in made.stderr
    assert "on the hub (owner/name)" in moe_gguf("inspect", "hub").stderr
    (tmp_path / "gguf" / "pair").mkdir(parents=True)
    written(tmp_path / "gguf" / "pair" / "pair-BF16.gguf", SMALL)
    assert report_of("pair")["path"] == str(Path("gguf/pair/pair-BF16.gguf"))


def test_a_header_with_four_thousand_million_layers_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    write_header_only(path, fields(SMALL) | {"llama.block_count": field_of(2**32 - 1)}, entries(SMALL))
    tracemalloc.start()
    outcome = moe_gguf("inspect", path, "--json")
    assert outcome.status == 0 and tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


ODD_VALUES = st.one_of(
    st.booleans(),
    st.integers(0, 2**32 - 1),
    st.floats(width=32),
    st.text(max_size=5),
    st.lists(st.integers(-5, 9), min_size=1, max_size=3),
)


@settings(max_examples=20, deadline=None)
@given(odd=st.dictionaries(st.sampled_from(sorted(fields(SMALL))), ODD_VALUES, min_size=1, max_size=4))
def test_odd_metadata_is_shown_or_refused(odd: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "odd.gguf"
    metadata = fields(SMALL) | {key: field_of(value) for key, value in odd.items()}
    write_header_only(path, metadata, entries(SMALL))
    for arguments in ((path,), (path, "--json")):
        outcome = moe_gguf("inspect", *arguments)
        assert outcome.status in (0, 1)
        assert bool(outcome.stdout) == (outcome.status == 0)


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    for name, words in {
        "text.txt": "not a model",
        "empty": "no config.json",
        "broken.gguf": "GGUF version 0",
        "nowhere": "no such file or folder",
    }.items():
        outcome = moe_gguf("inspect", tmp_path / name)
        assert (outcome.status, outcome.stdout) == (1, "")
        assert words in outcome.stderr
        assert outcome.stderr.count("\n") == 1
    assert moe_gguf("inspect", "-c", "-1").status == 2
