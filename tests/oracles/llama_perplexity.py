"""Keep what llama.cpp's llama-perplexity prints: `python -m tests.oracles.llama_perplexity BINARY`.

Out: tests/measure/golden/llama_perplexity.json, printed lines as they are.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.measure.perplexity_cases import DIVERGENCES, PERPLEXITIES, TEXT, write_models

GOLDEN = Path(__file__).parents[1] / "measure" / "golden" / "llama_perplexity.json"
READ = ("-f", str(TEXT))


def main(binary: Path) -> None:
    """Run every case and keep the lines with numbers."""
    found: dict[str, dict[str, object]] = {"perplexity": {}, "divergence": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_models(folder)
        for label, case in PERPLEXITIES.items():
            printed = _run(binary, folder, case.model, *case.options, *READ)
            pattern = r"\[\d+\]([\d.]+),$" if case.stride else r"Final estimate: (PPL = .*)$"
            found["perplexity"][label] = next(hit[1] for line in printed if (hit := re.search(pattern, line)))
        for label, (base, variant, n_ctx) in DIVERGENCES.items():
            stored, size = ("--kl-divergence-base", "base.logits"), ("-c", str(n_ctx))
            _run(binary, folder, base, *size, *stored, *READ)
            printed = _run(binary, folder, variant, *size, *stored, "--kl-divergence")
            start = next(at for at, line in enumerate(printed) if "Mean PPL(Q)" in line)
            rows = [line.split(":", 1) for line in printed[start:] if re.match(r" ?[\w ]+[.,\w% ()/-]*:", line)]
            found["divergence"][label] = {" ".join(name.split()): " ".join(value.split()) for name, value in rows}
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def _run(binary: Path, folder: Path, model: str, *options: str) -> list[str]:
    done = subprocess.run([binary, "-m", model, "-t", "1", *options], cwd=folder, check=True, capture_output=True)
    return [line for out in (done.stderr, done.stdout) for line in out.decode("utf-8").splitlines()]


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
