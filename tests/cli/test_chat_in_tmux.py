"""`moe-gguf chat` as a person drives it: typing, pasting, typing ahead, Ctrl-C, Ctrl-Z, another size of the window."""

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..runner.tiny_gguf import write_tiny
from ..tmux import Screen, terminal
from .test_chat import said

PROGRAM = (sys.executable, "-c", "from moe_gguf.cli import main; main()", "chat")
OPTIONS = ("-t", "1", "-c", "60000", "--no-fit", "-s", "1", "--ignore-eos")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[Screen]:
    with terminal(tmp_path) as screen:
        yield screen


def start(screen: Screen, model: Path, *options: str, after: str = "") -> None:
    """Start a chat and wait for its prompt."""
    screen.wait_for("$")
    screen.type(shlex.join([*PROGRAM, str(model), *OPTIONS, *options]) + after)
    screen.press("Enter")
    screen.wait_for("/help shows the commands.")
    screen.wait_for("\n>")


def test_typing_pasting_and_typing_ahead(screen: Screen, model: Path, tmp_path: Path) -> None:
    start(screen, model, "-n", "60")
    screen.paste("the cat\nand the hat\\")
    screen.press("Enter")
    screen.wait_for("[60 tokens, ")
    screen.type("an ant")
    screen.press("M-Enter")
    screen.type("a tan")
    screen.press("Enter")
    screen.type(f"/save {tmp_path}/c.json")
    screen.press("Enter")
    shown = screen.wait_for(" messages saved to")
    assert said(tmp_path / "c.json") == ["the cat\nand the hat\\", "an ant\na tan"]
    answers = [each["content"] for each in json.loads((tmp_path / "c.json").read_text())["messages"]]
    assert "/save" not in "".join(answers) and shown.count("/save") <= 2


def test_ctrl_c_stops_a_line_and_an_answer_and_saving_asks(screen: Screen, model: Path, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text("mine")
    start(screen, model)
    screen.type("never sent")
    screen.press("C-c")
    screen.wait_for("Ctrl-D leaves")
    screen.type("the cat")
    screen.press("Enter")
    screen.tmux("run-shell", "sleep 0.3")
    screen.press("C-c")
    screen.wait_for("(stopped)")
    screen.type(f"/save {tmp_path}/c.json")
    screen.press("Enter")
    screen.wait_for("exists; overwrite it? [y/N]")
    screen.type("y")
    screen.press("Enter")
    screen.wait_for("2 messages saved to")
    assert said(tmp_path / "c.json") == ["the cat"]
    screen.press("C-d")
    screen.type("echo status $?")
    screen.press("Enter")
    screen.wait_for("status 0")


def test_ctrl_z_stops_the_program_and_fg_goes_on(screen: Screen, model: Path) -> None:
    start(screen, model, "-n", "5")
    screen.press("C-z")
    screen.wait_for("Stopped")
    screen.type("fg")
    screen.press("Enter")
    screen.wait_for("$ fg")
    screen.wait_for("\n>")
    screen.type("the cat")
    screen.press("Enter")
    screen.wait_for("[5 tokens, ")


def test_a_resized_window_and_answers_alone_in_a_file(screen: Screen, model: Path, tmp_path: Path) -> None:
    screen.resize(50, 30)
    start(screen, model, "-n", "40", after=f" > {tmp_path}/answers.txt")
    screen.type("the cat")
    screen.resize(100, 20)
    screen.press("Enter")
    screen.wait_for("[40 tokens, ")
    screen.type("/stats")
    screen.press("Enter")
    screen.wait_for("of context used")
    screen.press("C-d")
    screen.wait_for("$", 2)
    answers = (tmp_path / "answers.txt").read_text()
    assert answers.strip() and not any(text in answers for text in ("the cat", "> ", "\x1b", "tokens/s"))
