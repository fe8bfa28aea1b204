"""GGUF files written again: split, joined, with other metadata, upgraded; weights stay as they are."""

import hashlib
import json
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType, GGUFValueType
from moe_gguf.formats.gguf_fields import Field, pack_value
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.quantize.ggml import quantize_chunk

from ..checkpoints import Tiny, write_checkpoint
from ..command import convert, moe_gguf
from ..quantize.test_whole_files import separate_experts

WIDE = Tiny(n_layer=2, n_embd=256, n_ff=512, n_head=4, n_head_kv=2, n_expert=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model in BF16 and in Q4_K_M."""
    folder = tmp_path_factory.mktemp("rewrite")
    write_checkpoint(folder / "Wide", WIDE)
    assert convert(folder / "Wide", folder / "bf16.gguf").status == 0
    made = moe_gguf("quantize", folder / "bf16.gguf", "--type", "Q4_K_M", "-o", folder / "q4.gguf", "-q")
    assert made.status == 0, made.stderr
    return folder


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tensors(path: Path) -> dict[str, bytes]:
    """Return every tensor's bytes, read by the gguf package."""
    return {tensor.name: np.ascontiguousarray(tensor.data).tobytes() for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("how", [("--split-max-size", "300K"), ("--split-max-tensors", "7")])
def test_joined_shards_equal_the_file(folder: Path, tmp_path: Path, how: tuple[str, str]) -> None:
    done = moe_gguf("split", folder / "q4.gguf", *how, "-o", tmp_path / "part.gguf", "--json")
    assert done.status == 0, done.stderr
    shards = [Path(one["path"]) for one in json.loads(done.stdout)["outputs"][0]["shards"]]
    assert len(shards) > 2 and shards[0].name == f"part-00001-of-{len(shards):05}.gguf"
    assert set(tmp_path.iterdir()) == set(shards)
    joined = moe_gguf("join", shards[0], "-o", tmp_path / "joined.gguf")
    assert joined.status == 0 and "shards are joined" in joined.stdout
    assert digest(tmp_path / "joined.gguf") == digest(folder / "q4.gguf")


def test_an_edited_files_tensors_are_untouched(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text("{{ messages[0].content }}")
    target = tmp_path / "edited.gguf"
    done = moe_gguf(
        *("edit", folder / "q4.gguf", "--set", "general.license=str:mit", "--set", "llama.context_length=int:99"),
        *("--chat-template", tmp_path / "chat.jinja", "--remove", "general.size_label", "-o", target),
    )
    assert done.status == 0, done.stderr
    before, after = read_gguf(folder / "q4.gguf").metadata, read_gguf(target).metadata
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert {"general.license", "llama.context_length", "tokenizer.chat_template", "general.size_label"} == changed
    assert after["tokenizer.chat_template"] == "{{ messages[0].content }}" and "general.size_label" not in after
    assert tensors(target) == tensors(folder / "q4.gguf")


def test_old_experts_are_stacked_and_what_lacks_is_taken_from_elsewhere(folder: Path, tmp_path: Path) -> None:
    old = separate_experts(folder / "bf16.gguf", tmp_path / "old.gguf")
    bare = tmp_path / "bare.gguf"
    keys = [key for key in read_gguf(old).metadata if key in ("tokenizer.ggml.pre", "tokenizer.chat_template")]
    removed = [word for key in keys for word in ("--remove", key)]
    assert keys and moe_gguf("upgrade", old, "-o", bare, "--no-verify").status == 0
    stripped = tmp_path / "stripped.gguf"
    assert moe_gguf("edit", bare, *removed, "-o", stripped).status == 0
    done = moe_gguf("upgrade", stripped, "--from", folder / "Wide", "-o", tmp_path / "new.gguf")
    assert done.status == 0, done.stderr
    assert all(f"{key} is taken from" in done.stdout for key in keys)
    new, reference = read_gguf(tmp_path / "new.gguf").metadata, read_gguf(folder / "bf16.gguf").metadata
    assert {key: new[key] for key in keys} == {key: reference[key] for key in keys}
    assert tensors(tmp_path / "new.gguf") == tensors(folder / "bf16.gguf")


def version_1(source: Path, target: Path) -> Path:
    """Write a file as the first version of GGUF: lengths, counts and dimensions of 32 bits, the same data."""
    file = read_gguf(source)
    data = bytearray()
    for key, field in file.fields.items():
        data += short_string(key) + struct.pack("<I", field.type) + short_value(field)
    entries = bytearray()
    for tensor in file.tensors.values():
        entries += short_string(tensor.name) + struct.pack(f"<I{len(tensor.shape)}I", len(tensor.shape), *tensor.shape)
        entries += struct.pack("<IQ", tensor.qtype, tensor.offset - file.header_bytes)
    header = struct.pack("<4sIII", b"GGUF", 1, len(file.tensors), len(file.fields)) + data + entries
    target.write_bytes(header + bytes(-len(header) % 32) + source.read_bytes()[file.header_bytes :])
    return target


def short_string(text: str) -> bytes:
    return struct.pack("<I", len(text.encode())) + text.encode()


def short_value(field: Field) -> bytes:
    if field.type is not GGUFValueType.ARRAY:
        return short_string(field.value) if isinstance(field.value, str) else pack_value(field.value, field.type)
    assert field.item_type is not None
    head = struct.pack("<II", field.item_type, len(field.value))
    if field.item_type is GGUFValueType.STRING:
        return head + b"".join(short_string(item) for item in field.value)
    return head + b"".join(pack_value(item, field.item_type) for item in field.value)


def test_the_first_version_becomes_the_third_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    old = version_1(folder / "q4.gguf", tmp_path / "v1.gguf")
    refused = moe_gguf("inspect", old)
    assert refused.status == 1 and "make it version 3 by moe-gguf upgrade" in refused.stderr
    done = moe_gguf("upgrade", old, "-o", tmp_path / "v3.gguf")
    assert done.status == 0 and "GGUF version 1 becomes 3" in done.stdout, done.stderr
    assert digest(tmp_path / "v3.gguf") == digest(folder / "q4.gguf")
    same = moe_gguf("verify", old, "--against", folder / "Wide", "--no-load")
    assert same.status == 0, same.stdout


def test_a_large_file_of_version_2_becomes_version_3_by_its_header_alone(folder: Path, tmp_path: Path) -> None:
    old = bytearray((folder / "q4.gguf").read_bytes())
    old[4:8] = struct.pack("<I", 2)
    (tmp_path / "v2.gguf").write_bytes(old)
    assert moe_gguf("upgrade", tmp_path / "v2.gguf", "-o", tmp_path / "v3.gguf").status == 0
    assert digest(tmp_path / "v3.gguf") == digest(folder / "q4.gguf")


def test_experts_of_several_types_are_refused_or_get_the_largest(folder: Path, tmp_path: Path) -> None:
    """Expert 1 of one matrix is Q6_K, as the mixtures of that time could have it."""
    q4, old = folder / "q4.gguf", tmp_path / "old.gguf"
    separate_experts(q4, tmp_path / "single.gguf")
    raised = with_one_expert_as(tmp_path / "single.gguf", old, "blk.1.ffn_up.1.weight", GGMLQuantizationType.Q6_K)
    done = moe_gguf("upgrade", old, "-o", tmp_path / "new.gguf")
    assert done.status == 1 and "experts of different types (Q4_K, Q6_K)" in done.stderr
    assert "moe-gguf upgrade --allow-requantize" in done.stderr
    done = moe_gguf("upgrade", old, "-o", tmp_path / "new.gguf", "--allow-requantize")
    assert done.status == 0, done.stderr
    told = "blk.1.ffn_up_exps.weight: 2 experts of 3 go from Q4_K to Q6_K, quantized again"
    assert told in done.stdout
    before, after = tensors(q4), tensors(tmp_path / "new.gguf")
    assert {name for name in before if before[name] != after[name]} == {"blk.1.ffn_up_exps.weight"}
    stacked = np.frombuffer(after["blk.1.ffn_up_exps.weight"], np.uint8).reshape(3, -1)
    assert stacked[1].tobytes() == raised
    shape = read_gguf(q4).tensors["blk.1.ffn_up_exps.weight"].shape
    q4_rows = np.frombuffer(before["blk.1.ffn_up_exps.weight"], np.uint8).reshape(shape[2], shape[1], -1)
    q6_rows = stacked.reshape(shape[2], shape[1], -1)
    was = gguf.dequantize(q4_rows[2], GGMLQuantizationType.Q4_K)
    now = gguf.dequantize(q6_rows[2], GGMLQuantizationType.Q6_K)
    assert np.abs(now - was).max() < 0.02 * np.abs(was).max()


def with_one_expert_as(source: Path, target: Path, name: str, qtype: GGMLQuantizationType) -> bytes:
    """Write a file again with one of its tensors in another type; return that tensor's bytes."""
    file = read_gguf(source)
    writer, made = gguf.GGUFWriter(target, "llama"), b""
    for key, field in file.fields.items():
        if key != "general.architecture":
            writer.add_key_value(key, field.value, field.type, field.item_type)
    for tensor in file.tensors.values():
        data = np.fromfile(source, np.uint8, tensor.n_bytes, offset=tensor.offset)
        data = data.reshape(*reversed(tensor.shape[1:]), -1)
        if tensor.name == name:
            data = quantize_chunk(qtype, gguf.dequantize(data, tensor.qtype))
            made = data.tobytes()
        writer.add_tensor(tensor.name, data, raw_dtype=qtype if tensor.name == name else tensor.qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return made


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("split", "q4.gguf", "-o", "x.gguf"), 2, "give one of --split-max-size"),
        (("edit", "q4.gguf", "-o", "x.gguf"), 2, "nothing to change"),
        (("edit", "q4.gguf", "--remove", "no.such.key", "-o", "x.gguf"), 1, "has no no.such.key"),
        (("edit", "q4.gguf", "--remove", "general.architecture", "-o", "x.gguf"), 1, "cannot be removed"),
        (("edit", "q4.gguf", "--set", "a.b=str:c", "-o", "q4.gguf"), 1, "the output is the input"),
        (("join", "q4.gguf", "-o", "bf16.gguf"), 1, "exists already"),
        (("upgrade", "q4.gguf", "--from", "other.gguf", "-o", "x.gguf"), 1, "has other tokens"),
    ],
)
def test_what_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], status: int, says: str
) -> None:
    monkeypatch.chdir(folder)
    if not Path("other.gguf").exists():
        write_checkpoint(Path("Other"), Tiny(n_vocab=300))
        assert convert(Path("Other"), Path("other.gguf")).status == 0
    before = set(folder.iterdir())
    outcome = moe_gguf(*arguments)
    assert outcome.status == status and says in outcome.stderr
    assert set(folder.iterdir()) == before
