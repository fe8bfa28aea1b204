"""The command as a whole: it starts light, ends with the right status, completes, and never shows a traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from moe_gguf.cli import root
from moe_gguf.formats.errors import GgufError

from ..command import moe_gguf
from ..header_only import Shape, entries, fields, write_header_only
from ..test_imports import HEAVY

CODE = (
    "import json, sys\nfrom moe_gguf.cli.root import run\n{}\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
)
RUN = "try:\n    run({!r})\nexcept SystemExit as leave:\n    assert not leave.code"


def loaded_by(code: str, **environment: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after this code."""
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(code)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return {name.split(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["inspect", "--help"], ["convert", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    assert not loaded_by(RUN.format(arguments)) & HEAVY


def test_no_verb_loads_anything_heavy() -> None:
    imports = "\n".join(f"import {root.module_of(verb)}" for verb in root.VERBS)
    assert not loaded_by(imports) & HEAVY


def test_completion_loads_no_verb() -> None:
    loaded = loaded_by(RUN.format([]), _MOE_GGUF_COMPLETE="bash_complete", COMP_WORDS="moe-gguf in", COMP_CWORD="1")
    assert not loaded & HEAVY


def complete(folder: Path, words: str, position: int, **environment: str) -> str:
    """Return what the shell is told when the tab key is hit."""
    variables = {"_MOE_GGUF_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(position)}
    code = "from moe_gguf.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env={**os.environ, **variables}
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_completion(tmp_path: Path) -> None:
    assert complete(tmp_path, "moe-gguf in", 1) == "plain,inspect\n"
    assert complete(tmp_path, "moe-gguf --ver", 1) == "plain,--version\n"
    assert "plain,--tensors" in complete(tmp_path, "moe-gguf inspect --t", 2)
    (tmp_path / "models.toml").write_text('[models.mine]\npath = "w"\n[models.other]\npath = "w"\n')
    assert complete(tmp_path, "moe-gguf inspect m", 2) == "plain,mine\n"
    assert complete(tmp_path, "moe-gguf inspect ./", 2) == "file,./\n"
    (tmp_path / "models.toml").write_text("broken")
    assert complete(tmp_path, "moe-gguf inspect m", 2) == "file,m\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, tmp_path: Path) -> None:
    script = subprocess.run(
        [sys.executable, "-c", "from moe_gguf.cli import main; main()"],
        capture_output=True,
        text=True,
        env={**os.environ, "_MOE_GGUF_COMPLETE": f"{shell}_source"},
    )
    assert "_MOE_GGUF_COMPLETE" in script.stdout


def test_help_lists_every_verb_with_its_own_words() -> None:
    outcome = moe_gguf("--help")
    assert outcome.status == 0
    for verb, words in root.VERBS.items():
        assert f"  {verb} " in outcome.stdout
        assert words in outcome.stdout
    assert moe_gguf("-h").stdout == outcome.stdout


def test_bad_usage() -> None:
    for arguments, words in (
        (["covnert"], "no verb 'covnert'; did you mean 'convert'?"),
        (["xyz"], "known: demo, merge"),
        (["--bad"], "No such option '--bad'"),
        (["inspect", "--bad"], "No such option '--bad'"),
        (["inspect", "a", "b"], "unexpected extra argument"),
    ):
        outcome = moe_gguf(*arguments)
        assert (outcome.status, outcome.stdout) == (2, "")
        assert words in outcome.stderr
    nothing = moe_gguf()
    assert nothing.status == 2
    assert "Commands:" in nothing.stdout + nothing.stderr


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (GgufError("a.gguf: broken;\n mend it"), 1, "moe-gguf: a.gguf: broken; mend it\n"),
        (FileNotFoundError(2, "No such file", "x"), 1, "moe-gguf: x: No such file\n"),
        (OSError("odd"), 1, "moe-gguf: odd\n"),
        (MemoryError(), 1, "moe-gguf: not enough memory for this operation\n"),
        (click.ClickException("bad"), 1, "Error: bad\n"),
        (click.exceptions.Exit(3), 3, ""),
        (KeyboardInterrupt(), 130, "moe-gguf: interrupted\n"),
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
    ],
)
def test_status(
    raised: BaseException, status: int, message: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def fail() -> None:
        raise raised

    monkeypatch.setattr(root.Verbs, "get_command", lambda *_: fail)
    with pytest.raises(SystemExit) as leave:
        root.run(["inspect"])
    assert leave.value.code == status
    assert capfd.readouterr().err.strip() == message.strip()


@pytest.mark.parametrize("option", ["-v", "--json"])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_any_text_can_be_printed(option: str, encoding: str, tmp_path: Path) -> None:
    shape = Shape(n_expert=2, n_layer=1, n_embd=32, n_ff=32, n_head=2, n_head_kv=1, n_vocab=32)
    path = write_header_only(tmp_path / "a.gguf", fields(shape, general__name="caf\udce9 \N{SNOWMAN}"), entries(shape))
    done = subprocess.run(
        [sys.executable, "-c", "from moe_gguf.cli import main; main()", "inspect", option, path],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"caf" in done.stdout


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    code = "from moe_gguf.cli import main; main()"
    program = subprocess.Popen(
        [sys.executable, "-c", code, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert program.stdout and program.stderr
    program.stdout.close()
    assert program.stderr.read() == ""
    program.wait()
    program.stderr.close()
