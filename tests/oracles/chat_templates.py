"""Chat templates as transformers and llama.cpp render them: tests/runner/templates/kinds/ in, golden files out.

`... chat_templates transformers` runs in an oracle environment; `... chat_templates llama-server PATH` in the tests'
environment, with llama.cpp's server built from the sources that llama-cpp-python brings.
"""

import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "runner" / "templates" / "golden"
URL = "http://127.0.0.1:18499"
Answers = dict[str, dict[str, Any]]


def by_transformers(kinds: dict[str, str], scenes: dict[str, Any], special: dict[str, str]) -> Answers:
    """Return what apply_chat_template makes of every kind and scene: a text, or null where it fails."""
    from transformers.utils.chat_template_utils import render_jinja_template  # pyright: ignore[reportMissingImports]

    found: Answers = {}
    for kind, source in kinds.items():
        found[kind] = {}
        for scene, case in scenes.items():
            text = None
            with suppress(Exception):
                text = render_jinja_template(
                    [case["messages"]],
                    tools=case.get("tools"),
                    chat_template=source,
                    add_generation_prompt=True,
                    **special,
                    **case.get("values", {}),
                )[0][0]
            found[kind][scene] = text
    return found


def by_llama_server(kinds: dict[str, str], scenes: dict[str, Any], server: str, model: Path) -> Answers:
    """Return what the server's Jinja engine makes of them, and under "wants" what it finds out about the template."""
    found: Answers = {}
    for kind, source in kinds.items():
        with tempfile.NamedTemporaryFile("w", suffix=".jinja") as file:
            file.write(source)
            file.flush()
            options = ("-m", str(model), "--port", URL.rpartition(":")[2], "-c", "512", "-t", "1", "--no-warmup")
            command = [server, *options, "--chat-template-file", file.name]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                wait_for(process)
                found[kind] = {scene: rendered(case) for scene, case in scenes.items()}
                found[kind]["wants"] = ask("/props")["chat_template_caps"]
            finally:
                process.kill()
                process.wait()
    return found


def rendered(case: dict[str, Any]) -> str | None:
    """Return the prompt of a scene, or None where the server refuses."""
    body = {"messages": case["messages"]} | ({"tools": case["tools"]} if "tools" in case else {})
    if "values" in case:
        body["chat_template_kwargs"] = case["values"]
    try:
        return ask("/apply-template", body)["prompt"]
    except HTTPError:
        return None


def wait_for(process: subprocess.Popen[bytes]) -> None:
    """Wait until the server answers."""
    while process.poll() is None:
        with suppress(URLError):
            if ask("/health")["status"] == "ok":
                return
        time.sleep(0.05)
    raise SystemExit("the server ended")


def ask(path: str, body: Any = None) -> Any:
    """Return what the server answers."""
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(URL + path, data, {"Content-Type": "application/json"}), timeout=30) as answer:
        return json.load(answer)


def main(which: str, *arguments: str) -> None:
    """Write one golden file."""
    from tests.runner.templates.kind_cases import BOS, EOS, KINDS, SCENES

    if which == "transformers":
        answers = by_transformers(KINDS, SCENES, {"bos_token": BOS, "eos_token": EOS})
    else:
        from tests.runner.tiny_gguf import write_tiny

        with tempfile.TemporaryDirectory() as folder:
            answers = by_llama_server(KINDS, SCENES, arguments[0], write_tiny(Path(folder) / "tiny.gguf"))
    target = GOLDEN / f"{which.replace('-', '_')}.json"
    target.write_text(json.dumps(answers, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"{target}: {len(answers)} kinds, {sum(map(len, answers.values()))} answers")


if __name__ == "__main__":
    main(*sys.argv[1:])
