"""Fold tiny LoRA adapters into a tiny base with PEFT's merge_and_unload, as golden weights.

    python -m tests.oracles.mergekit_loras      (in an environment with peft and transformers)

Out: tests/merge/golden/loras.safetensors, the MLPs of layer 1 after each merge, named CASE/TENSOR.
"""

import tempfile
from pathlib import Path

import torch  # pyright: ignore[reportMissingImports]
from peft import PeftModel  # pyright: ignore[reportMissingImports]
from safetensors.torch import save_file  # pyright: ignore[reportMissingImports]
from transformers import AutoModelForCausalLM  # pyright: ignore[reportMissingImports]

from tests.merge.cases import LORAS
from tests.merge.tiny_models import Dense, write_dense, write_lora

GOLDEN = Path(__file__).parent.parent / "merge" / "golden"


def main() -> None:
    """Make the goldens."""
    tensors: dict[str, torch.Tensor] = {}
    for name, (dtype, adapter) in LORAS.items():
        with tempfile.TemporaryDirectory() as folder:
            dense = Dense(dtype=dtype)
            base = write_dense(Path(folder) / "base", dense)
            lora = write_lora(Path(folder) / "lora", dense, 5, **adapter)
            model = AutoModelForCausalLM.from_pretrained(base)
            merged = PeftModel.from_pretrained(model, lora).merge_and_unload()
            for key, tensor in merged.state_dict().items():
                if key.startswith("model.layers.1.mlp."):
                    tensors[f"{name}/{key}"] = tensor.clone().contiguous()
    save_file(tensors, GOLDEN / "loras.safetensors")


if __name__ == "__main__":
    main()
