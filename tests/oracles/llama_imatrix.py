"""What llama-imatrix makes of the tests' tiny model: importance matrices in both formats, and its table of one."""

import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from ..measure.imatrix_case import CHUNKS, N_CTX, TEXT
from ..runner.tiny_gguf import N_LAYER, write_tiny

GOLDEN = Path(__file__).parent.parent / "measure" / "golden"


def main(program: str) -> None:
    """Write the files, and the table of one of them."""
    GOLDEN.mkdir(exist_ok=True)
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_tiny(folder / "tiny.gguf")
        (folder / "text.txt").write_text(TEXT)
        options = [
            "-m",
            "tiny.gguf",
            "-f",
            "text.txt",
            "-c",
            str(N_CTX),
            "--chunks",
            str(CHUNKS),
            "--no-ppl",
            "-t",
            "1",
        ]
        more = ["--process-output", "-b", str(N_CTX), "-ub", str(N_CTX)]
        for kind in ("gguf", "dat"):
            target = GOLDEN.absolute() / f"imatrix.{kind}"
            command = [program, *options, *more, "-o", str(target), "--output-format", kind]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
        command = [program, "-m", "tiny.gguf", "--show-statistics", "--in-file", "imatrix.gguf"]
    # Its log is written by a thread that the program does not wait for, so often some of it is missing.
    shown = ""
    while not re.search(rf"\n +{N_LAYER - 1}\t[^\n]*%\t[^\n]*\n\s*$", shown):
        done = subprocess.run(command, cwd=GOLDEN, check=True, capture_output=True, text=True)
        # Lines in the log begin with a time and a level.
        shown = re.sub(r"(?m)^[0-9.]+ I ", "", done.stdout + done.stderr)
    (GOLDEN / "imatrix_statistics.txt").write_text(shown)


if __name__ == "__main__":
    main(sys.argv[1])
