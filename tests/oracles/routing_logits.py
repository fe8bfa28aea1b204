"""Merge with real mergekit-moe and keep the logits of transformers, or of deepseek_moe.py, for each way of routing.

    python -m tests.oracles.routing_logits      (in an environment with mergekit 0.1.5)

Out: tests/merge/golden/routing.npz, float32 [tokens, n_vocab] for each of tests/merge/routing_cases.py.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from transformers import AutoModelForCausalLM  # pyright: ignore[reportMissingImports]

from tests.merge.routing_cases import ROUTINGS, TOKENS, Routing

from . import deepseek_moe
from .mergekit_merges import GOLDEN, merge


def logits(routing: Routing, folder: Path) -> np.ndarray:
    """Merge, change config.json, load every tensor and compute."""
    merge(routing.case, folder)
    path = folder / "out" / "config.json"
    config = json.loads(path.read_text()) | routing.overrides
    path.write_text(json.dumps(config))
    if config["model_type"] == "deepseek":
        return deepseek_moe.logits(path.parent, TOKENS, config).numpy()
    model, report = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, output_loading_info=True)
    missing = set(report["missing_keys"]) - ({"lm_head.weight"} if config["tie_word_embeddings"] else set())
    assert not missing and not report["unexpected_keys"] and not report["mismatched_keys"], report
    with torch.inference_mode():
        return model(torch.tensor([TOKENS])).logits[0].numpy()


def main() -> None:
    """Make the golden file."""
    results = {}
    for name, routing in ROUTINGS.items():
        with tempfile.TemporaryDirectory() as folder:
            results[name] = logits(routing, Path(folder))
            print(name, results[name].std())
    np.savez_compressed(GOLDEN / "routing.npz", **results)


if __name__ == "__main__":
    main()
