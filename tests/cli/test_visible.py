"""What a file or a model says is shown on a terminal, and never obeyed by it."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moe_gguf.cli.visible import visible, visible_answer, visible_json

from ..runner.tiny_gguf import Fields, Tensors, write_tiny

TITLE = "\x1b]0;owned\x07"
HOSTILE = f"nice{TITLE}\x9b31m\u202eemas\x7f\r"


def hostile(fields: Fields, _: Tensors) -> None:
    """Put what steers terminals wherever a file has text."""
    fields["general.name"] = HOSTILE
    fields["general.architecture"] = "llama"
    fields["tokenizer.ggml.pre"] = HOSTILE
    fields["tokenizer.chat_template"] = "{{ raise_exception('" + HOSTILE + "') }}"
    tokens = fields["tokenizer.ggml.tokens"]
    for number in range(261, len(tokens)):
        tokens[number] = f"{TITLE}{number}"


def on_terminal(*arguments: str | Path) -> str:
    """Run a command on a terminal; return what it printed there."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "from moe_gguf.cli import main; main()", *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, close_fds=True)
    os.close(theirs)
    printed = b""
    while True:
        try:
            block = os.read(ours, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
        if not block:
            break
        printed += block
    process.wait(60)
    os.close(ours)
    return printed.decode()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("hostile") / "hostile.gguf", hostile)


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "MODEL", "--tensors"),
        ("inspect", "MODEL", "--json"),
        ("generate", "MODEL", "-p", "the", "-n", "12", "-t", "1", "--temp", "0"),
        ("generate", "MODEL", "-cnv", "-p", "the", "-n", "4", "-t", "1"),
        ("quantize", "MODEL", "--type", "Q8_0", "--dry-run", "-o", "FOLDER"),
    ],
)
def test_a_hostile_file_steers_no_terminal(model: Path, arguments: tuple[str, ...]) -> None:
    printed = on_terminal(*({"MODEL": model, "FOLDER": model.parent}.get(word, word) for word in arguments))
    assert TITLE not in printed and "\x9b31m" not in printed and "\u202e" not in printed
    if "--json" in arguments:
        assert json.loads(printed.replace("\r\n", "\n"))["name"] == HOSTILE
    elif arguments[0] == "generate":
        assert "]0;owned" in printed
    elif arguments[0] == "inspect":
        assert r"nice␛]0;owned␇\x9b31m\u202eemas␡␍" in printed


@given(st.text())
def test_what_is_shown_holds_no_control_character(text: str) -> None:
    steering = {*map(chr, range(0x20)), "\x7f", *map(chr, range(0x80, 0xA0))} - {"\n", "\t"}
    assert not steering & set(visible(text)) and not steering & set(visible_answer(text))
    plain = json.dumps(text, ensure_ascii=False)
    assert not steering & set(visible_json(plain)) and json.loads(visible_json(plain)) == text


def test_reports_are_printed_by_what_shows_and_does_not_obey() -> None:
    cli = Path(__file__).parents[2] / "cli"
    for path in sorted(cli.glob("*.py")):
        for line in path.read_text().splitlines():
            if "click.echo(" in line and path.name != "terminal.py":
                harmless = ("err=True", "file=", "visible", "click.style", "version(")
                assert any(word in line for word in harmless), f"{path.name}: {line.strip()}"
