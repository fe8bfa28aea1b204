"""A file loaded in llama.cpp by a process of its own, since llama.cpp ends the process on some broken files.

python -m moe_gguf.release.loaded FILE 0|1      (1: decode, and look at the logits; prints what is wrong, as JSON)
"""

import json
import os
import subprocess
import sys
from pathlib import Path


def wrong_in_llama(path: Path, decode: bool) -> list[str]:
    """Return what llama.cpp does not like of a file: nothing of a good one."""
    command = [sys.executable, "-m", __name__, str(path), str(int(decode))]
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, check=False)
    if done.returncode == 0:
        return json.loads(done.stdout)
    last = next((line.strip() for line in reversed(done.stderr.splitlines()) if line.strip()), "it says nothing")
    return [f"llama.cpp ends the process on it (status {done.returncode}): {last:.200}"]


def main() -> None:
    """Load the file that the arguments name."""
    from ..runner.verify import verify_gguf

    # What llama.cpp prints is not the answer.
    answer = os.dup(1)
    os.dup2(2, 1)
    problems = verify_gguf(Path(sys.argv[1]), decode=sys.argv[2] == "1")
    os.write(answer, json.dumps(problems).encode())


if __name__ == "__main__":
    main()
