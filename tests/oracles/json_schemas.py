"""Grammars that llama.cpp's own converter makes of JSON schemas: tests/runner/json_schemas.py in, a golden file out.

Runs in the tests' environment, with llama.cpp's server, which tells the grammar of each request.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from ..runner.json_schemas import KEPT
from ..runner.tiny_gguf import write_tiny
from .chat_templates import ROOT, URL, ask, wait_for

GOLDEN = ROOT / "runner" / "golden" / "json_schemas.json"


def main(server: str) -> None:
    """Write the golden file: the grammar of each schema, under its JSON."""
    with tempfile.TemporaryDirectory() as folder:
        model = write_tiny(Path(folder) / "tiny.gguf")
        options = ("-m", str(model), "--port", URL.rpartition(":")[2], "-c", "512", "-t", "1", "--no-warmup")
        process = subprocess.Popen([server, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for(process)
            found = {json.dumps(schema): grammar_of(schema) for schema, _, _ in KEPT}
        finally:
            process.kill()
            process.wait()
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"{GOLDEN}: {len(found)} grammars")


def grammar_of(schema: object) -> str:
    """Return the grammar that the server makes of a schema."""
    answer = ask("/completion", {"prompt": "a", "n_predict": 1, "json_schema": schema})
    grammar = answer["generation_settings"]["grammar"]
    return grammar if isinstance(grammar, str) else grammar["grammar"]


if __name__ == "__main__":
    main(*sys.argv[1:])
