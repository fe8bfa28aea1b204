"""Merge the tiny cases with real mergekit-moe and write what came out as golden hashes.

    python -m tests.oracles.mergekit_merges      (in an environment with mergekit 0.1.5 and peft)

Out: tests/merge/golden/mergekit.json, every tensor's dtype, shape and hash, config.json, and the logits of the last
of some tokens in transformers; and tests/merge/golden/gates.json, mergekit's cheap_embed gates.
"""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import mergekit.scripts.moe as mergekit_moe  # pyright: ignore[reportMissingImports]
import torch  # pyright: ignore[reportMissingImports]
import yaml
from mergekit.merge import MergeOptions  # pyright: ignore[reportMissingImports]
from mergekit.moe.config import MoEMergeConfig  # pyright: ignore[reportMissingImports]
from mergekit.moe.router import get_gate_params  # pyright: ignore[reportMissingImports]
from safetensors.torch import load_file  # pyright: ignore[reportMissingImports]
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast  # pyright: ignore[reportMissingImports]

from tests.merge.cases import CASES, Case, gates_of, write_case

GOLDEN = Path(__file__).parent.parent / "merge" / "golden"
TOKENS = [5, 77, 140, 9, 301, 42, 488, 200]


def described(tensor: torch.Tensor) -> list[Any]:
    """Return a tensor's dtype, shape and hash."""
    data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), hashlib.sha256(data).hexdigest()[:16]]


def merge(case: Case, folder: Path) -> dict[str, Any]:
    """Merge one case with its gates passed in."""
    recipe = write_case(folder, case)
    config = MoEMergeConfig.model_validate(yaml.safe_load(recipe.read_text()))
    n_shared = len(config.shared_experts or [])
    gates = torch.from_numpy(gates_of(case)[:, : case.n_expert + n_shared])
    mergekit_moe.get_gate_params = lambda *_, **__: gates
    out = folder / "out"
    mergekit_moe.build(config, str(out), MergeOptions(), device="cpu")
    tensors = load_file(out / "model.safetensors")
    golden = {
        "config": json.loads((out / "config.json").read_text()),
        "tensors": {name: described(tensor) for name, tensor in sorted(tensors.items())},
    }
    golden["config"].pop("_name_or_path", None)
    if golden["config"]["model_type"] != "deepseek":
        golden["logits"] = logits(out)
    return golden


def logits(folder: Path) -> list[float]:
    """Load a checkpoint, which must have every key and no other, and return the last token's logits in float32."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    missing = [key for key in info["missing_keys"] if key != "lm_head.weight" or not model.config.tie_word_embeddings]
    assert not missing and not info["unexpected_keys"], info
    with torch.no_grad():
        last = model(torch.tensor([TOKENS])).logits[0, -1]
    return [round(float(value), 5) for value in last]


def cheap_embed(case: Case, folder: Path) -> list[list[float]]:
    """Return mergekit's cheap_embed gates of the first layer."""
    config = MoEMergeConfig.model_validate(yaml.safe_load(write_case(folder, case).read_text()))
    # AutoTokenizer rebuilds a tokenizer by the model's class, and may lose its pre-tokenizer; the file is the truth.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(config.base_model.model.path)
    tokenizer.padding_side = "left"
    tokenizer.pad_token_id = tokenizer.bos_token_id
    gates = get_gate_params(config.base_model, tokenizer, config.experts, mode="cheap_embed")
    return [[round(float(value), 8) for value in row] for row in gates[0].float()]


def main() -> None:
    """Make all goldens."""
    GOLDEN.mkdir(exist_ok=True)
    merges, gates = {}, {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            merges[name] = merge(case, Path(folder))
            print(name, len(merges[name]["tensors"]), "tensors")
    for name in ("mixtral-mistral", "mixtral-llama-f16"):
        with tempfile.TemporaryDirectory() as folder:
            gates[name] = cheap_embed(CASES[name], Path(folder))
    (GOLDEN / "mergekit.json").write_text(json.dumps(merges, indent=1) + "\n")
    (GOLDEN / "gates.json").write_text(json.dumps(gates) + "\n")


if __name__ == "__main__":
    main()
