"""What a person can send to `moe-gguf chat` beside messages."""

import io
import json
import sys
from io import StringIO
from pathlib import Path

import pytest
from moe_gguf.cli.chat_commands import named_path, shortened
from moe_gguf.cli.word_wrap import WordWrap

from ..command import Outcome, moe_gguf
from ..runner.tiny_gguf import Fields, write_tiny
from .test_chat import QUICK, said


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture
def chat(model: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that pipes lines, or bytes, into a chat."""

    def run(*lines: str | bytes, options: tuple[str, ...] = ()) -> Outcome:
        if lines and isinstance(lines[0], bytes):
            stream: object = io.TextIOWrapper(io.BytesIO(lines[0]), encoding="ascii")
        else:
            stream = StringIO("".join(f"{line}\n" for line in lines))
        monkeypatch.setattr(sys, "stdin", stream)
        return moe_gguf("chat", model, *QUICK, *options)

    return run


def test_a_slash_can_begin_a_message(chat, tmp_path: Path) -> None:
    (tmp_path / "land").write_text("")
    lines = ("//quit now", " /help me", "/usr/bin/cat is a cat", f"{tmp_path}/land", "/nonsense", " exit")
    outcome = chat(*lines, f"/save {tmp_path}/c.json", "exit", "never sent")
    assert said(tmp_path / "c.json") == ["/quit now", "/help me", "/usr/bin/cat is a cat", f"{tmp_path}/land", " exit"]
    assert "(no command /nonsense; /help lists them, //nonsense sends it as a message)" in outcome.stderr


@pytest.mark.parametrize("leaving", ["exit", "quit", "/exit", "/quit", "/bye"])
def test_ways_to_leave(chat, leaving: str) -> None:
    assert chat(leaving, "the cat").stdout == ""


def test_saving_asks_before_it_overwrites_and_understands_quotes(chat, tmp_path: Path) -> None:
    file = tmp_path / "my chat.json"
    file.write_text("mine")
    outcome = chat("the cat", f'/save "{file}"', f"/save {tmp_path}/none/c.json", options=())
    assert f"({file} exists and was left as it is; /save -f" in outcome.stderr and file.read_text() == "mine"
    assert "No such file" in outcome.stderr
    assert f"(2 messages saved to {file})" in chat("the cat", f'/save -f "{file}"').stderr
    assert said(file) == ["the cat"]
    assert [path.name for path in tmp_path.iterdir()] == ["my chat.json"]


def test_saving_keeps_turns_that_left_the_context(chat, tmp_path: Path) -> None:
    long = "the cat and the hat in a land " * 2
    outcome = chat(*[f"{number} {long}" for number in range(14)], f"/save {tmp_path}/c.json", "/regen")
    assert "no longer fit" in outcome.stderr
    assert [text.split()[0] for text in said(tmp_path / "c.json")] == [str(number) for number in range(14)]


def test_loading_shows_where_the_conversation_stands(chat, tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "the cat"}, {"type": "text", "text": "\x1b[31man ant", "note": 1}]
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": "in a land"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "a hat", "tool_call_id": "1"},
    ]
    file = tmp_path / "c.json"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(messages).encode())
    outcome = chat(f"/load {file}", "/system", f"/save {tmp_path}/d.json")
    for text in (
        "(3 messages loaded",
        "system: in a land",
        "assistant: calls look",
        "tool: a hat",
        "/regen answers it",
    ):
        assert text in outcome.stderr
    assert "\x1b" not in outcome.stderr
    assert json.loads((tmp_path / "d.json").read_text())["messages"] == messages
    assert "message 1: a message is an object" in chat(f"/load {broken(tmp_path)}").stderr


def broken(folder: Path) -> Path:
    (folder / "broken.json").write_text('["text"]')
    return folder / "broken.json"


def test_reading_a_file_into_the_next_message(chat, tmp_path: Path) -> None:
    (tmp_path / "a b.txt").write_text("an ant\n")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    lines = (f"/read '{tmp_path}/a b.txt'", "the cat", f"/read {tmp_path}/latin.txt", "/read", "a hat")
    outcome = chat(*lines, f"/save {tmp_path}/c.json")
    assert said(tmp_path / "c.json") == ["an ant\n\n\nthe cat", "a hat"]
    assert "goes in front of your next message" in outcome.stderr and "no UTF-8 text (byte 0xe9 at 0)" in outcome.stderr


def test_clear_forgets_and_help_has_two_names(chat, tmp_path: Path) -> None:
    outcome = chat("the cat", "/clear", "/?", "an ant", f"/save {tmp_path}/c.json")
    assert said(tmp_path / "c.json") == ["an ant"] and "/read FILE" in outcome.stderr


def test_settings(chat) -> None:
    lines = ("/set", "/set temp 0.25", "/set n_predict 2", "/set seed 5", "/set reasoning off", "/set", "the cat")
    outcome = chat(*lines, "/set temp cold", "/set temp nan", "/set nonsense 1", "/set ignore_eos off")
    for text in ("temp 0.8", "(temp 0.25)", "reasoning auto", "reasoning off", "seed 5", "[2 tokens, "):
        assert text in outcome.stderr
    for complaint in ("temp is a number, not 'cold'", "temp is nan", "there is no setting 'nonsense'"):
        assert complaint in outcome.stderr
    assert "(ignore_eos off)" in outcome.stderr


def test_the_first_message_and_the_system_message_from_the_command_line(chat, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("the cat\n")
    (tmp_path / "s.txt").write_text("in a land\n")
    files = ("-f", f"{tmp_path}/p.txt", "-sysf", f"{tmp_path}/s.txt")
    outcome = chat("an ant", f"/save {tmp_path}/c.json", options=files)
    assert outcome.status == 0 and said(tmp_path / "c.json") == ["the cat", "an ant"]
    assert json.loads((tmp_path / "c.json").read_text())["messages"][0]["content"] == "in a land"
    assert chat("an ant", options=("-p", "/the cat", "-st")).stderr.count("[6 tokens, ") == 1
    assert chat("/help", "an ant", "the cat", options=("-st",)).stderr.count("[6 tokens, ") == 1
    assert chat(options=("-p", "a", *files)).status == 2


def test_piped_text_of_another_encoding_is_read_or_refused(chat, tmp_path: Path) -> None:
    save = f"/save -f {tmp_path}/c.json\n"
    chat(f"thé cat\r\n{save}".encode("utf-16"))
    assert said(tmp_path / "c.json") == ["thé cat"]
    chat(b"\xef\xbb\xbf" + f"thé hat\n{save}".encode())
    assert said(tmp_path / "c.json") == ["thé hat"]
    outcome = chat("the ant\nthé cat\n".encode("latin-1"))
    assert outcome.status == 1 and "standard input: no UTF-8 text (byte 0xe9 at 2)" in outcome.stderr
    assert outcome.stderr.count("[6 tokens, ") == 1


def test_only_answers_go_to_a_pipe_and_thoughts_do_not(chat, model: Path, tmp_path: Path) -> None:
    plain = chat("the cat")
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if enable_thinking %}<think>{% endif %}</think>"
    thinking = template.replace("</think>", "").replace("<think>", "<think>\n")
    outcome = chat("the cat", options=("--chat-template", thinking + "{# </think> #}", "-rea", "on"))
    assert outcome.stdout.strip() == "" and "[6 tokens, " in outcome.stderr
    assert plain.stdout.strip() and "[6 tokens" not in plain.stdout
    raw = chat("the cat", options=("--chat-template", thinking, "-rea", "on", "--reasoning-format", "none"))
    assert raw.stdout.strip()


@pytest.mark.parametrize("size", [1, 3, 100])
def test_words_are_not_cut_at_the_lines_end(size: int) -> None:
    wrap, text = WordWrap(10), "the cat and the hat\nin a land of\tants, extraordinarily 東京都 東京都 tan"
    shown = "".join(wrap.push(text[i : i + size]) for i in range(0, len(text), size)) + wrap.flush()
    lines = shown.split("\n")
    assert [line.split() for line in lines if line.strip()] == [
        *(["the", "cat"], ["and", "the"], ["hat"], ["in", "a", "land"], ["of"], ["ants,"]),
        *(["extraordin"], ["arily"], ["東京都"], ["東京都", "tan"]),
    ]
    assert "".join(shown.split()) == "".join(text.split())


def test_names_and_summaries() -> None:
    assert named_path('"a b"') == Path("a b") and named_path("a'b") == Path("a'b") and named_path('"') == Path('"')
    assert shortened("a\n b\x1b") == "a b " and len(shortened("x" * 200)) == 70


def test_a_template_that_loses_the_message_is_refused_and_the_chat_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(fields: Fields, _: object) -> None:
        fields["tokenizer.chat_template"] = "{% for m in messages %}{{ m.role }}{% endfor %}"

    monkeypatch.setattr(sys, "stdin", StringIO("the cat\n/help\n"))
    outcome = moe_gguf("chat", write_tiny(tmp_path / "tiny.gguf", forgetful), *QUICK)
    assert "the last message of the user is not in the prompt" in outcome.stderr and "/read FILE" in outcome.stderr
