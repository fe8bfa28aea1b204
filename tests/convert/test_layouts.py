"""The same weights give the same GGUF, byte for byte, however the checkpoint lays them out; and the right ones."""

import json
import random
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .. import checkpoints
from ..checkpoints import Tiny, write_checkpoint, write_shards
from ..command import convert


def converted(parent: Path, tiny: Tiny, outtype: str = "auto", shuffle: int | None = None) -> Path:
    """Convert a checkpoint that lies in a folder always called "tiny"; `shuffle` seeds its tensors' order."""
    source = write_checkpoint(parent / "tiny", replace(tiny, cuts=()))
    (source / "model.safetensors").unlink()
    names = list(checkpoints.tensors(tiny).items())
    if shuffle is not None:
        random.Random(shuffle).shuffle(names)
    write_shards(source, dict(names), tiny.cuts)
    outcome = convert(source, parent / "out.gguf", "--outtype", outtype)
    assert outcome.status == 0, outcome.stderr
    return parent / "out.gguf"


def digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("outtype", ["auto", "f32", "f16", "q8_0"])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_layouts_and_cuts_change_nothing(dtype: str, outtype: str, tmp_path: Path) -> None:
    tiny = Tiny(dtype=dtype)
    variants = {
        "classic": (tiny, None),
        "fused": (replace(tiny, layout="fused"), None),
        "an expert over two shards": (replace(tiny, cuts=(9, 10, 22)), None),
        "fused in shards": (replace(tiny, layout="fused", cuts=(1, 8, 9)), None),
        "any order": (replace(tiny, cuts=(5, 30)), 7),
    }
    results = {
        name: digest(converted(tmp_path / name, variant, outtype, shuffle))
        for name, (variant, shuffle) in variants.items()
    }
    assert len(set(results.values())) == 1, results


def test_spellings_of_config_change_nothing(tmp_path: Path) -> None:
    old, new = (
        digest(converted(tmp_path / spelling, Tiny(spelling=spelling, rope_theta=1e6))) for spelling in ("old", "new")
    )
    assert old == new


def test_experts_named_beyond_nine_stay_in_order(tmp_path: Path) -> None:
    classic = Tiny(n_expert=12, n_layer=1, n_ff=32)
    assert digest(converted(tmp_path / "a", classic)) == digest(
        converted(tmp_path / "b", replace(classic, layout="fused"))
    )


def expected_tensors(tiny: Tiny) -> dict[str, np.ndarray]:
    """Return what an F32 GGUF of a checkpoint must hold, in numpy order, without a look at the converter."""
    arrays = {
        "token_embd.weight": checkpoints.values(tiny, "embed", tiny.n_vocab, tiny.n_embd),
        "output_norm.weight": checkpoints.values(tiny, "model.norm.weight", tiny.n_embd),
    }
    if not tiny.tied:
        arrays["output.weight"] = checkpoints.values(tiny, "lm_head.weight", tiny.n_vocab, tiny.n_embd)
    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    norms = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    for layer in range(tiny.n_layer):
        for name, array in checkpoints.attention_tensors(tiny, layer).items():
            part = name.split(".")[-2]
            if part in ("q_proj", "k_proj"):
                # Hugging Face rotates the halves of a head, llama.cpp neighbours: row (half, i) becomes (i, half).
                halves = array.reshape(-1, 2, tiny.n_rot // 2, tiny.n_embd)
                array = np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(array.shape)
            arrays[f"blk.{layer}.{(names | norms)[part]}.weight"] = array
        for part, role in {"w1": "gate", "w2": "down", "w3": "up"}.items():
            experts = [checkpoints.expert_weight(tiny, layer, e, part) for e in range(tiny.n_expert)]
            arrays[f"blk.{layer}.ffn_{role}_exps.weight"] = np.stack(experts)
        router = f"model.layers.{layer}.block_sparse_moe.gate.weight"
        arrays[f"blk.{layer}.ffn_gate_inp.weight"] = checkpoints.values(tiny, router, tiny.n_expert, tiny.n_embd)
    return arrays


@st.composite
def tinies(draw: st.DrawFn) -> Tiny:
    """Draw a checkpoint: 1 to 9 experts, any ratio of heads to keys, tied or not, any layout, any cuts."""
    n_head_kv = draw(st.integers(1, 4))
    n_expert = draw(st.integers(1, 9))
    layout = draw(st.sampled_from(["classic", "fused"]))
    tiny = Tiny(
        n_layer=draw(st.integers(1, 3)),
        n_embd=draw(st.sampled_from([8, 32, 48])),
        n_ff=draw(st.sampled_from([1, 16, 40])),
        n_head=n_head_kv * draw(st.integers(1, 4)),
        n_head_kv=n_head_kv,
        head_dim=draw(st.sampled_from([2, 4, 10])),
        n_expert=n_expert,
        n_expert_used=draw(st.integers(1, n_expert)),
        n_vocab=320,
        dtype="F32",
        tied=draw(st.booleans()),
        layout=layout,
        spelling=draw(st.sampled_from(["old", "new"])),
        seed=draw(st.integers(0, 99)),
    )
    n_tensors = len(checkpoints.tensors(tiny))
    return replace(tiny, cuts=tuple(sorted(draw(st.sets(st.integers(1, n_tensors - 1), max_size=4)))))


@settings(max_examples=40, deadline=None)
@given(tiny=tinies(), shuffle=st.integers(0, 9))
def test_any_small_checkpoint_comes_out_right(tiny: Tiny, shuffle: int) -> None:
    with TemporaryDirectory() as folder:
        reader = gguf.GGUFReader(converted(Path(folder), tiny, "f32", shuffle))
        written = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    expected = expected_tensors(tiny)
    assert sorted(written) == sorted(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(written[name].reshape(array.shape), array, err_msg=name)


def test_dry_run_knows_the_file_to_the_byte(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "tiny", Tiny(layout="fused"))
    target = tmp_path / "out.gguf"
    for outtype in ("auto", "f32", "q8_0"):
        planned = convert(source, target, "--outtype", outtype, "--dry-run", "--json")
        assert planned.status == 0, planned.stderr
        assert not target.exists()
        done = convert(source, target, "--outtype", outtype, "--json", "--force")
        assert done.status == 0, done.stderr
        (output,) = json.loads(planned.stdout)["outputs"]
        assert json.loads(done.stdout)["outputs"] == [output]
        assert output["bytes"] == target.stat().st_size
        reader = gguf.GGUFReader(target)
        assert output["tensors"] == [
            {
                "name": tensor.name,
                "shape": [int(n) for n in tensor.shape],
                "type": tensor.tensor_type.name,
                "bytes": int(tensor.n_bytes),
            }
            for tensor in reader.tensors
        ]
        n_weights = sum(int(tensor.n_elements) for tensor in reader.tensors)
        assert output["bpw"] == pytest.approx(8 * sum(t["bytes"] for t in output["tensors"]) / n_weights, rel=0.1)
        target.unlink()
