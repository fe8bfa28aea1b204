"""Run transformers' mixtures in float32 on our tiny checkpoints and keep what the routers say.

In: nothing; out: tests/measure/golden/routers.npz, logits [n_layer, n_tokens, n_expert] per case. See README.md.
"""

import tempfile
from pathlib import Path

import numpy as np

from ..checkpoints import Tiny, write_checkpoint
from .logits_cases import LOGITS, TOKENS

GOLDEN = Path(__file__).parent.parent / "measure" / "golden" / "routers.npz"
CASES = ("classic, 2 of 4", "fused, 2 of 4", "1 of 3", "olmoe, 2 of 4")


def router_logits(tiny: Tiny) -> np.ndarray:
    """Return every router's logits for each of TOKENS."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM  # pyright: ignore[reportMissingImports]

    with tempfile.TemporaryDirectory() as folder:
        path = write_checkpoint(Path(folder), tiny)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        with torch.inference_mode():
            found = model(torch.tensor([TOKENS]), output_router_logits=True).router_logits
    return np.stack([layer.numpy() for layer in found])


def main() -> None:
    """Compute every case and write the golden file."""
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, **{name: router_logits(LOGITS[name]) for name in CASES})  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    main()
