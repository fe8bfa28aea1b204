"""Whether llama-quantize makes our file of the words that we print: `python -m tests.oracles.printed_mix BINARY`.

    python -m tests.oracles.printed_mix BINARY [MODEL-BF16.gguf SENSITIVITY.json]

For three sizes the mix is printed by a dry run, llama-quantize reads it as --tensor-type-file, and each tensor of its
file must have the type and the bytes of ours. Without a model the tests' tiny one is taken, and its sensitivities.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from moe_gguf.formats.gguf_file import read_gguf

from tests.command import moe_gguf
from tests.jobs.test_budget import FOUND
from tests.quantize.tiny_files import write_tiny

SIZES = ("4.9", "5.6", "7")


def main(binary: Path, model: Path | None = None, sensitivity: Path | None = None) -> int:
    """Print a line per size; the exit status tells whether all files are the same."""
    same = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if model is None or sensitivity is None:
            model, sensitivity = write_tiny(folder / "tiny-F32.gguf"), folder / "tiny.json"
            sensitivity.write_text(json.dumps(FOUND.as_json()))
        for size in SIZES:
            same = _compared(binary, model, ("--target-bpw", size, "--sensitivity", sensitivity), folder) and same
    return 0 if same else 1


def _compared(binary: Path, model: Path, target: tuple[str | Path, ...], folder: Path) -> bool:
    ours, theirs, words = folder / "ours.gguf", folder / "theirs.gguf", folder / "types.txt"
    report = _quantize(model, *target, "--dry-run")
    mix = report["budget"]["mix"]
    words.write_text("\n".join(f"{row['pattern']}={row['type']}" for row in mix))
    _quantize(model, *target, "-o", ours, "--force")
    base = report["type"].removesuffix("_X")
    subprocess.run([binary, "--tensor-type-file", words, model, theirs, base, "1"], check=True, capture_output=True)
    made, stock = _tensors(ours), _tensors(theirs)
    different = [name for name in made.keys() | stock.keys() if made.get(name) != stock.get(name)]
    types = sorted({row["type"] for row in mix})
    size = f"{target[1]} bits per weight, {base}, {', '.join(types)}"
    print(f"{model.name}, {size}: {len(made)} tensors, {len(different)} differ", *sorted(different)[:5], flush=True)
    return not different


def _quantize(*arguments: str | Path) -> dict:
    done = moe_gguf("quantize", *arguments, "--json", "-q", "-t", "1")
    assert done.status == 0, done.stderr
    return json.loads(done.stdout)["outputs"][0]


def _tensors(path: Path) -> dict[str, tuple[int, bytes]]:
    return {
        name: (tensor.qtype, np.fromfile(tensor.path, np.uint8, tensor.n_bytes, offset=tensor.offset).tobytes())
        for name, tensor in read_gguf(path).tensors.items()
    }


if __name__ == "__main__":
    sys.exit(main(*(Path(argument).resolve() for argument in sys.argv[1:])))
