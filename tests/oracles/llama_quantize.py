"""Ask llama.cpp's llama-quantize for the hashes of its files: `python -m tests.oracles.llama_quantize BINARY`."""

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.quantize.golden_cases import CASES, SAME_OPTIONS, write_sources

GOLDEN = Path(__file__).parents[1] / "quantize" / "golden" / "llama_quantize.json"


def main(binary: Path) -> None:
    """Run every case and keep the SHA-256 of the file that it wrote."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_sources(folder)
        _run(binary, folder, ["f32.gguf", "q8_0.gguf", "Q8_0", "2"])
        hashes = {"sources": {path.name: _hash(path) for path in sorted(folder.iterdir())}, "outputs": {}}
        for case_name, (options, file_type) in SAME_OPTIONS.items():
            _run(binary, folder, [*options, "f32.gguf", "out.gguf", file_type, "2"])
            hashes["outputs"][case_name] = _hash(folder / "out.gguf")
        for case_name, case in CASES.items():
            _run(binary, folder, case.arguments("out.gguf"))
            hashes["outputs"][case_name] = _hash(folder / "out.gguf")
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(hashes, indent=1) + "\n")


def _run(binary: Path, folder: Path, arguments: list[str]) -> None:
    subprocess.run([binary, *arguments], cwd=folder, check=True, capture_output=True)


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
