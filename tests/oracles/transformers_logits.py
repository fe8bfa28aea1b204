"""Run transformers' MixtralForCausalLM in float32 on our tiny checkpoints and keep the logits.

In: nothing; out: tests/convert/golden/logits.npz, [n_tokens, n_vocab] per case. See README.md.
"""

import tempfile
from pathlib import Path

import numpy as np

from ..checkpoints import Tiny, write_checkpoint
from .logits_cases import DENSE, LOGITS, TOKENS

GOLDEN = Path(__file__).parent.parent / "convert" / "golden" / "logits.npz"


def logits(tiny: Tiny) -> np.ndarray:
    """Return the logits after each of TOKENS."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM  # pyright: ignore[reportMissingImports]

    with tempfile.TemporaryDirectory() as folder:
        path = write_checkpoint(Path(folder), tiny)
        model, report = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
        if report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"]:
            raise SystemExit(f"transformers did not take every tensor: {report}")
        with torch.inference_mode():
            return model(torch.tensor([TOKENS])).logits[0].numpy()


def main() -> None:
    """Compute every case and write the golden file."""
    results = {name: logits(tiny) for name, tiny in LOGITS.items()}
    results["dense"] = logits(DENSE)
    np.savez_compressed(GOLDEN, **results)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    main()
