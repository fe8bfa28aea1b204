"""Every fault that a file can have is found and named; good files of anyone's pass."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf.constants import GGMLQuantizationType as Type
from gguf.constants import LlamaFileType
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.formats.gguf_layout import TensorEntry
from moe_gguf.quantize.file_types import parse_file_type
from moe_gguf.release.checksums import SUMS, sha256_of, write_checksums

from ..checkpoints import Tiny, write_checkpoint
from ..command import convert, moe_gguf
from ..header_only import MIXTRAL_8X7B, entries, fields, write_header_only
from ..quantize.oracle import quantize_file
from ..quantize.test_whole_files import separate_experts
from .faults import change_router, flip, padding_of, put, swap_experts, whole

WIDE = Tiny(n_layer=4, n_embd=256, n_ff=512, n_head=4, n_head_kv=2, n_expert=4)
Q4 = "wide-Q4_K_M.gguf"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, its BF16 and its Q4_K_M."""
    folder = tmp_path_factory.mktemp("verify")
    write_checkpoint(folder / "Wide", WIDE)
    assert convert(folder / "Wide", folder / "wide-BF16.gguf").status == 0
    done = moe_gguf("quantize", folder / "Wide", "--type", "Q4_K_M", "-o", folder / Q4, "-q")
    assert done.status == 0, done.stderr
    return folder


@pytest.fixture
def q4(made: Path, tmp_path: Path) -> Path:
    """A copy of the Q4_K_M that may be damaged."""
    return Path(shutil.copy(made / Q4, tmp_path / Q4))


def verified(target: Path | str, *options: str | Path, status: int = 1) -> list[dict[str, Any]]:
    """Run verify; return the files of its report."""
    done = moe_gguf("verify", target, *options, "--json")
    assert done.status == status, done.stderr + done.stdout
    report = json.loads(done.stdout)
    assert set(report) == {"ok", "files"} and report["ok"] is (status == 0)
    for file in report["files"]:
        assert set(file) == {"path", "ok", "problems", "tensors"} and file["ok"] is not bool(file["problems"])
        assert set(file["tensors"]) == {"exact", "same_type", "wrong", "unchecked"}
        assert all(set(one) == {"kind", "tensor", "expert", "rows", "message"} for one in file["problems"])
    return report["files"]


def problems(target: Path, *options: str | Path) -> list[dict[str, Any]]:
    """Return what is wrong with the one file."""
    (file,) = verified(target, *options)
    return file["problems"]


@pytest.mark.parametrize("source", ["Wide", "wide-BF16.gguf"])
def test_a_good_file_is_bit_exact_against_what_it_was_made_of(made: Path, source: str) -> None:
    (file,) = verified(made / Q4, "--against", made / source, status=0)
    assert file["path"] == str(made / Q4)
    assert file["tensors"] == {"exact": len(read_gguf(made / Q4).tensors), "same_type": 0, "wrong": 0, "unchecked": 0}


def test_without_a_source_a_good_file_is_loaded_and_its_tensors_are_not_compared(made: Path) -> None:
    (file,) = verified(made / Q4, status=0)
    assert file["tensors"]["unchecked"] == len(read_gguf(made / Q4).tensors)


def test_llama_quantizes_own_file_is_bit_exact_too(made: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs-Q5_K_M.gguf"
    quantize_file(made / "wide-BF16.gguf", theirs, parse_file_type("Q5_K_M"))
    (file,) = verified(theirs, "--against", made / "Wide", status=0)
    assert file["tensors"]["exact"] == len(read_gguf(theirs).tensors)


def test_a_file_that_was_f16_before_is_no_damaged_one(tmp_path: Path) -> None:
    """Small weights lose digits in F16, which a few rows show."""
    small = replace(WIDE, awkward_values=True)
    write_checkpoint(tmp_path / "Small", small)
    assert convert(tmp_path / "Small", tmp_path / "small-F16.gguf", "--outtype", "f16").status == 0
    target = tmp_path / "small-Q4_K_M.gguf"
    assert moe_gguf("quantize", tmp_path / "small-F16.gguf", "--type", "Q4_K_M", "-o", target, "-q").status == 0
    (file,) = verified(target, "--against", tmp_path / "Small", "--no-load", status=0)
    assert file["tensors"]["same_type"] > 5 and file["tensors"]["wrong"] == 0
    told = moe_gguf("verify", target, "--against", tmp_path / "Small", "--no-load")
    assert "with rows that were F16 before they were quantized" in told.stderr
    found, _ = whole(target, "blk.1.ffn_up_exps.weight")
    flip(target, found.offset + 5, 4)
    (problem,) = problems(target, "--against", tmp_path / "Small", "--no-load")
    assert problem["kind"] == "wrong" and problem["expert"] == 0


@pytest.mark.parametrize("bit", [0, 7])
@pytest.mark.parametrize("tensor", ["blk.1.ffn_down_exps.weight", "blk.2.attn_q.weight", "output.weight"])
def test_a_flipped_bit_of_a_weight_is_found_to_the_byte(made: Path, q4: Path, tensor: str, bit: int) -> None:
    found, _ = whole(q4, tensor)
    at = found.offset + found.n_bytes // 2 + 77
    flip(q4, at, bit)
    (problem,) = problems(q4, "--against", made / "Wide", "--no-load")
    assert problem["kind"] == "wrong" and problem["tensor"] == tensor and f"byte {at} of {Q4}" in problem["message"]
    row = (at - found.offset) // (found.n_bytes // (found.shape[1] * (found.shape[2:] or (1,))[0]))
    expert, row = divmod(row, found.shape[1])
    assert problem["expert"] == (expert if len(found.shape) == 3 else None) and problem["rows"] == [[row, row + 1]]


def test_a_flipped_bit_of_a_norm_is_found(made: Path, q4: Path) -> None:
    found, _ = whole(q4, "blk.0.attn_norm.weight")
    flip(q4, found.offset + 5)
    (problem,) = problems(q4, "--against", made / "Wide", "--no-load")
    assert (problem["kind"], problem["tensor"]) == ("wrong", "blk.0.attn_norm.weight")


def test_a_flipped_bit_of_padding_is_found(q4: Path) -> None:
    at = padding_of(read_gguf(q4))
    flip(q4, at, 3)
    (problem,) = problems(q4, "--no-load")
    assert problem["kind"] in ("padding", "structure") and f"byte {at}" in problem["message"]


def test_a_flipped_bit_anywhere_in_the_header_is_found_with_the_source(made: Path, q4: Path) -> None:
    """Every byte of what is short, and samples of the vocabulary."""
    size = read_gguf(q4).header_bytes
    for at in (*range(0, 1500, 11), *range(1500, size, size // 40), *range(size - 2500, size, 37)):
        flip(q4, at, at % 8)
        found = problems(q4, "--against", made / "Wide", "--no-load", "--sample", "1")
        assert found and found[0]["kind"] not in ("wrong", "other bytes", "load"), at
        flip(q4, at, at % 8)


def test_two_exchanged_experts_are_named(made: Path, q4: Path) -> None:
    swap_experts(q4, "blk.1.ffn_up_exps.weight", 0, 3)
    found = problems(q4, "--against", made / "Wide", "--no-load")
    assert [(one["kind"], one["tensor"], one["expert"]) for one in found] == [
        ("expert", "blk.1.ffn_up_exps.weight", 0),
        ("expert", "blk.1.ffn_up_exps.weight", 3),
    ]
    assert "in the place of expert 0 are the bytes of expert 3" in found[0]["message"]


def test_a_sample_finds_exchanged_experts_and_names_its_odds(made: Path, q4: Path) -> None:
    swap_experts(q4, "blk.2.ffn_gate_exps.weight", 1, 2)
    done = moe_gguf("verify", q4, "--against", made / "Wide", "--no-load", "--sample", "2")
    assert done.status == 1 and "in the place of expert 1 are the bytes of expert 2" in done.stdout
    assert "a single flipped byte is missed with a probability of" in done.stdout


def test_a_changed_router_is_named_with_its_expert(made: Path, q4: Path) -> None:
    change_router(q4, "blk.3.ffn_gate_inp.weight", 2)
    (problem,) = problems(q4, "--against", made / "Wide", "--no-load")
    assert (problem["kind"], problem["tensor"], problem["expert"]) == ("router", "blk.3.ffn_gate_inp.weight", 2)


def test_a_cut_off_file_is_called_truncated(q4: Path) -> None:
    with open(q4, "r+b") as file:
        file.truncate(q4.stat().st_size - 5000)
    (problem,) = problems(q4)
    assert problem["kind"] == "truncated"


def test_another_mix_than_the_name_says_is_found(made: Path, q4: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "wide-Q5_K_M.gguf"
    shutil.copy(q4, renamed)
    (problem,) = problems(renamed, "--no-load")
    assert problem["kind"] == "mix" and "named Q5_K_M, and says Q4_K_M" in problem["message"]
    own = tmp_path / "own" / Q4
    own.parent.mkdir()
    assert moe_gguf("quantize", made / "Wide", "--type", "Q4_K_M", "--pure", "-o", own, "-q").status == 0
    (problem,) = problems(own, "--no-load", "--against", made / "Wide")
    assert problem["kind"] == "mix" and "Q4_K, not Q6_K" in problem["message"]


def test_metadata_that_differs_from_the_source_is_named(made: Path, q4: Path, tmp_path: Path) -> None:
    edited = tmp_path / "edited-Q4_K_M.gguf"
    changes = ("--set", "llama.rope.freq_base=float:500000", "--set", "general.name=str:Other")
    assert moe_gguf("edit", q4, *changes, "-o", edited).status == 0
    found = problems(edited, "--against", made / "Wide", "--no-load")
    assert [(one["kind"], one["message"].split(" ")[0]) for one in found] == [
        ("description", "general.name"),
        ("metadata", "llama.rope.freq_base"),
    ]


def test_weights_that_are_not_finite_are_found_without_a_source(q4: Path) -> None:
    """llama.cpp rounds activations before it multiplies by the output: a NaN among them becomes a number there."""
    found, data = whole(q4, "output_norm.weight")
    data.view("float32")[0, 3] = float("nan")
    put(q4, found, data)
    (problem,) = problems(q4)
    assert (problem["kind"], problem["tensor"]) == ("not finite", "output_norm.weight")
    found, data = whole(q4, "blk.2.ffn_up_exps.weight")
    data[3, :2] = 0, 0x7C  # the scale of the first block of expert 3: infinity in F16
    put(q4, found, data)
    (second,) = (one for one in problems(q4) if one["tensor"] == "blk.2.ffn_up_exps.weight")
    assert (second["kind"], second["expert"], second["rows"]) == ("not finite", 3, [[0, 1]])


def test_a_folder_is_held_against_its_checksums(made: Path, q4: Path) -> None:
    (q4.parent / "README.md").write_text("card")
    write_checksums(q4.parent, {name: sha256_of(q4.parent / name) for name in (Q4, "README.md")})
    files = verified(q4.parent, "--no-load", status=0)
    assert [file["path"] for file in files] == ["README.md", Q4]
    (q4.parent / "README.md").write_text("cards")
    flip(q4, q4.stat().st_size // 2)
    shutil.copy(made / "wide-BF16.gguf", q4.parent / "more-BF16.gguf")
    by_name = {file["path"]: file["problems"] for file in verified(q4.parent, "--no-load", "--against", made / "Wide")}
    assert [one["kind"] for one in by_name["README.md"]] == ["checksum"]
    assert [one["kind"] for one in by_name[Q4]] == ["checksum", "wrong"]
    assert [one["kind"] for one in by_name["more-BF16.gguf"]] == ["checksum"]
    assert SUMS in by_name["more-BF16.gguf"][0]["message"]
    (q4.parent / "README.md").unlink()
    kinds = {file["path"]: [one["kind"] for one in file["problems"]] for file in verified(q4.parent, "--no-load")}
    assert kinds["README.md"] == ["missing"]


def test_an_imatrix_that_a_file_names_explains_other_bytes(made: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("One and two and three. " * 60)
    matrix, target = tmp_path / "wide-imatrix.gguf", tmp_path / "elsewhere" / Q4
    target.parent.mkdir()
    made_it = moe_gguf("imatrix", made / "wide-BF16.gguf", "-f", text, "-o", matrix, "-c", "64", "-t", "1", "-q")
    assert made_it.status == 0, made_it.stderr
    done = moe_gguf("quantize", made / "Wide", "--type", "Q4_K_M", "--imatrix", matrix, "-o", target, "-q")
    assert done.status == 0, done.stderr
    (file,) = verified(target, "--against", made / "Wide", "--no-load", status=0)
    assert file["tensors"]["same_type"] > 10 and not file["tensors"]["wrong"]
    told = moe_gguf("verify", target, "--against", made / "Wide", "--no-load")
    assert f"made with the importance matrix {matrix}" in told.stderr and "bytes can be right" in told.stderr
    (file,) = verified(target, "--against", made / "Wide", "--imatrix", matrix, "--no-load", status=0)
    assert file["tensors"]["exact"] == len(read_gguf(target).tensors)
    shutil.copy(matrix, target.parent)
    (file,) = verified(target, "--against", made / "Wide", "--no-load", status=0)
    assert file["tensors"]["same_type"] == 0
    swap_experts(target, "blk.1.ffn_up_exps.weight", 0, 3)
    (target.parent / matrix.name).unlink()
    (file,) = verified(target, "--against", made / "Wide", "--no-load")
    assert ["the weights, rounded otherwise, of expert" in one["message"] for one in file["problems"]] == [True] * 2


def test_other_bytes_that_nothing_explains_are_a_problem(made: Path, tmp_path: Path) -> None:
    """Made from weights that were rounded to Q8_0 before, which the file does not say."""
    q8, twice = tmp_path / "wide-Q8_0.gguf", tmp_path / Q4
    assert moe_gguf("quantize", made / "Wide", "--type", "Q8_0", "-o", q8, "-q").status == 0
    assert moe_gguf("quantize", q8, "--type", "Q4_K_M", "--allow-requantize", "-o", twice, "-q").status == 0
    (file,) = verified(twice, "--against", made / "Wide", "--no-load")
    assert {one["kind"] for one in file["problems"]} == {"other bytes"} and file["tensors"]["wrong"] == 0
    assert file["tensors"]["same_type"] == len(file["problems"]) > 10
    assert all(one["rows"] for one in file["problems"])


def broken_mix(path: Path) -> Path:
    """Write the header of Mixtral's Q4_K_M as llama.cpp made it before the fix: 26.44 GB, sparse."""

    def old(entry: TensorEntry) -> TensorEntry:
        if "norm" in entry.name or "gate_inp" in entry.name:
            return entry
        if entry.name == "output.weight":
            return replace(entry, qtype=Type.Q6_K)
        return replace(entry, qtype=Type.Q8_0 if "attn_k" in entry.name or "attn_v" in entry.name else Type.Q4_K)

    stated = fields(MIXTRAL_8X7B, LlamaFileType.MOSTLY_Q4_K_M)
    return write_header_only(path, stated, [old(entry) for entry in entries(MIXTRAL_8X7B)])


def test_the_broken_mix_of_early_2024_is_recognized(tmp_path: Path) -> None:
    old = broken_mix(tmp_path / "mixtral-8x7b-v0.1.Q4_K_M.gguf")
    assert round(old.stat().st_size / 1e9, 2) == 26.44
    (problem,) = problems(old, "--no-load")
    assert problem["kind"] == "mix" and "the broken MoE mix of early 2024" in problem["message"]


def test_a_split_file_is_compared_as_one(made: Path, tmp_path: Path) -> None:
    done = moe_gguf("split", made / Q4, "--split-max-size", "1M", "-o", tmp_path / Q4)
    assert done.status == 0, done.stderr
    shards = sorted(tmp_path.glob("*.gguf"))
    assert len(shards) > 2
    write_checksums(tmp_path, {path.name: sha256_of(path) for path in shards})
    files = verified(tmp_path, "--against", made / "Wide", status=0)
    assert [file["path"] for file in files] == [path.name for path in shards]
    assert [file["tensors"]["exact"] for file in files] == [len(read_gguf(made / Q4).tensors)] + [0] * (len(shards) - 1)
    flip(shards[2], shards[2].stat().st_size - 3000, 6)
    by_name = {file["path"]: file["problems"] for file in verified(tmp_path, "--against", made / "Wide", "--no-load")}
    assert [one["kind"] for one in by_name[shards[2].name]] == ["checksum"]
    (problem,) = by_name[shards[0].name]
    assert (
        problem["kind"] == "wrong"
        and f"byte {shards[2].stat().st_size - 3000} of {shards[2].name}" in problem["message"]
    )
    shards[1].unlink()
    assert "missing shard" in verified(shards[0], "--no-load")[0]["problems"][-1]["message"]


def test_what_llama_cpp_ends_the_process_on_is_reported(made: Path, q4: Path) -> None:
    """Heads that the width cannot be divided into, an assertion there."""
    broken = q4.parent / "broken" / Q4
    broken.parent.mkdir()
    assert moe_gguf("edit", q4, "--set", "llama.attention.head_count=int:3", "-o", broken).status == 0
    found = problems(broken)
    assert found[-1]["kind"] == "load"


def test_an_old_file_of_single_experts_is_compared_as_if_it_were_stacked(made: Path, tmp_path: Path) -> None:
    old = separate_experts(made / "wide-BF16.gguf", tmp_path / "old-BF16.gguf")
    (file,) = verified(old, "--against", made / "Wide", "--no-load", status=0)
    assert file["tensors"]["exact"] == len(read_gguf(made / Q4).tensors)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("nothing.gguf",), 1, "no such file"),
        ((Q4, "--sample", "4"), 1, "it goes with --against"),
        ((Q4, "--against", "nowhere"), 1, "nowhere"),
        ((Q4, "--sample", "0"), 2, "0"),
    ],
)
def test_what_is_refused(
    made: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], status: int, says: str
) -> None:
    monkeypatch.chdir(made)
    done = moe_gguf("verify", *arguments)
    assert done.status == status and says in done.stderr and not done.stdout
