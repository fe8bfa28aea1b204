"""The documents are true: options, commands, files and links that they name exist, and the rest is executed."""

import ast
import io
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from moe_gguf.cli import demo
from moe_gguf.cli.root import VERBS, root
from moe_gguf.models.catalogue import FIELDS, RECIPE_KEYS, RESULT_KEYS, read_catalogue
from moe_gguf.models.families import FAMILIES
from moe_gguf.quantize.file_types import FILE_TYPES

from .checkpoints import Tiny, write_checkpoint
from .command import moe_gguf

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
CODE_FOLDERS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
RUN_IN_A_CATALOGUE = ("convert", "quantize", "inspect", "generate", "chat", "fit", "devices")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def names(path: Path) -> str:
    """Return a page's name, for the test's."""
    return path.relative_to(ROOT).as_posix()


def text_of(page: Path) -> str:
    """Read a page."""
    return page.read_text(encoding="utf-8")


def commands_of(page: Path) -> list[list[str]]:
    """Return the words of every `moe-gguf` command of a page: in fenced blocks, and in inline code but for titles."""
    text = text_of(page)
    fenced = "\n".join(block for _, block in FENCE.findall(text)).replace("\\\n", " ")
    prose = [line for line in FENCE.sub("", text).splitlines() if not line.startswith("#")]
    spans = re.findall(r"`([^`\n]+)`", "\n".join(prose))
    lines = [line.strip().removeprefix("$ ") for line in [*fenced.splitlines(), *spans]]
    return [shlex.split(line, comments=True) for line in lines if re.match(r"moe-gguf( |$)", line)]


def test_cli_page_is_what_help_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    page = text_of(ROOT / "docs" / "cli.md")
    for arguments in ([], *([verb] for verb in VERBS)):
        outcome = moe_gguf(*arguments, "--help")
        assert outcome.status == 0
        assert f"```\n{outcome.stdout.rstrip()}\n```" in page, "run: python docs/make_cli.py"


def test_cli_page_is_what_its_script_writes() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import make_cli  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.pop(0)
    assert text_of(ROOT / "docs" / "cli.md") == make_cli.page(), "run: python docs/make_cli.py"


def options_of(command: click.Command) -> set[str]:
    """Return the options that a command takes."""
    return {
        option
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for option in (*parameter.opts, *parameter.secondary_opts)
    } | {"--help", "-h"}


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_commands_and_their_options_exist(page: Path) -> None:
    top = root.make_context("moe-gguf", [], resilient_parsing=True)
    for words in commands_of(page):
        rest = words[1:]
        while rest and rest[0].startswith("-"):
            assert rest[0] in options_of(root), words
            rest = rest[2:] if rest[0] == "--catalogue" else rest[1:]
        if not rest or not re.fullmatch("[a-z]+", rest[0]):
            continue
        assert rest[0] in VERBS, words
        command = root.get_command(top, rest[0])
        assert command
        for word in rest[1:]:
            option = re.match(r"\[?(--?[A-Za-z][\w-]*)", word)
            for one in option[1].split("/") if option else ():
                assert one in options_of(command), words


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", FENCE.sub("", text_of(page))):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), target


def test_contributing_names_every_folder_and_file() -> None:
    text = text_of(ROOT / "CONTRIBUTING.md")
    for folder in CODE_FOLDERS:
        assert f"{folder}/" in text
        for path in sorted((ROOT / folder).rglob("*.py")):
            if folder not in ("tests", "benchmarks") and path.name != "__init__.py":
                assert path.name in text, path.relative_to(ROOT)
    for page in (ROOT / "docs").glob("*.*"):
        assert page.name in text, page


def test_readme_names_every_folder_and_page() -> None:
    text = text_of(ROOT / "README.md")
    for folder in (*CODE_FOLDERS, "docs"):
        assert f"`{folder}/`" in text, folder
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in text, page


def test_readme_quotes_the_demo_command_by_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands: list[list[str]] = []
    monkeypatch.setattr(demo, "run", lambda *words: commands.append(["moe-gguf", *map(str, words)]))
    monkeypatch.setattr("moe_gguf.jobs.demo.prepare_base", lambda *_: None)
    monkeypatch.setattr(demo, "show_routing", lambda _: None)
    assert moe_gguf("demo").status == 0
    block = next(block for _, block in FENCE.findall(text_of(ROOT / "README.md")) if "$ moe-gguf merge" in block)
    quoted = [shlex.split(line[2:]) for line in block.replace("\\\n", " ").splitlines() if line.startswith("$ ")]
    assert quoted == commands


def test_readme_names_real_make_targets() -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    assert {"demo", "test", "test-all", "lint", "bench", "clean"} <= targets
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", text_of(page), re.MULTILINE):
            assert target in targets, page


def test_the_catalogue_page_has_every_key_and_its_examples_are_read(tmp_path: Path) -> None:
    text = text_of(ROOT / "docs" / "catalogue.md")
    for key in (*FIELDS, *RECIPE_KEYS, "results"):
        assert f"`{key}`" in text or f"`{key} " in text, key
    for key in RESULT_KEYS:
        assert f"{key} = " in text, key
    examples = [block for language, block in FENCE.findall(text) if language == "toml"]
    assert len(examples) == 2
    for example in examples:
        (tmp_path / "models.toml").write_text(example, encoding="utf-8")
        assert read_catalogue(tmp_path / "models.toml").models


def runs_anywhere(words: list[str]) -> bool:
    """Tell whether a command names no file, so that a catalogue's default is all it needs."""
    if len(words) < 2 or words[1] not in RUN_IN_A_CATALOGUE or {"--help", "..."} & set(words):
        return False
    top = root.make_context("moe-gguf", [], resilient_parsing=True)
    command = root.get_command(top, words[1])
    assert command
    chosen = command.make_context(words[1], words[2:], top, resilient_parsing=True).params
    arguments = [one.name for one in command.params if isinstance(one, click.Argument)]
    return not any(chosen.get(name or "") for name in arguments) and not any(
        isinstance(value, Path) for value in chosen.values()
    )


@pytest.mark.parametrize("page", ["README.md", "docs/catalogue.md"])
def test_commands_run_one_after_the_other(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "weights", Tiny(n_embd=256, n_ff=256))
    Path("models.toml").write_text('default = "bruce"\n[models.bruce]\ntitle = "Bruce"\npath = "weights"\n')
    commands = [words for words in commands_of(ROOT / page) if runs_anywhere(words)]
    assert ["moe-gguf", "convert"] in commands
    assert ["moe-gguf", "quantize", "--type", "Q4_K_M"] in commands
    for words in commands:
        monkeypatch.setattr("sys.stdin", io.StringIO("Hello!\n"))
        outcome = moe_gguf(*words[1:], *(["-n", "4"] if words[1] in ("chat", "generate") else []))
        assert outcome.status == 0, (words, outcome.stderr)
    made = {path.name for path in Path("gguf/bruce").iterdir()}
    assert made >= {"Bruce-4x1.1M-BF16.gguf", "Bruce-4x1.1M-Q4_K_M.gguf"}
    assert json.loads(moe_gguf("inspect", "--json").stdout)["file_type"] == "Q4_K_M"


def test_the_catalogue_page_quotes_a_real_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models.toml").write_text('# mine\n[models.bruce]\npath = "w"\nlicence = "mit"\n')
    message = moe_gguf("inspect").stderr.removeprefix("moe-gguf: ").strip()
    assert f"`{message}`" in text_of(ROOT / "docs" / "catalogue.md")


@pytest.fixture
def in_a_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, which has a catalogue: the one of docs/release.md, whose only model is there."""
    monkeypatch.chdir(tmp_path)
    example = next(block for kind, block in FENCE.findall(text_of(ROOT / "docs" / "release.md")) if kind == "toml")
    (tmp_path / "models.toml").write_text(f'default = "bruce"\n{example}', encoding="utf-8")
    write_checkpoint(tmp_path / "weights" / "bruce-merged", Tiny(n_embd=256, n_ff=256))
    return tmp_path


@pytest.mark.parametrize("page", ["docs/convert.md", "docs/quantize.md", "docs/run.md"])
def test_commands_of_other_pages_run(page: str, in_a_catalogue: Path) -> None:
    assert moe_gguf("quantize", "bruce", "--type", "Q4_0").status == 0
    for words in commands_of(ROOT / page):
        if runs_anywhere(words):
            outcome = moe_gguf(*words[1:])
            assert outcome.status == 0, (words, outcome.stderr)


def test_the_release_page_leads_to_a_folder(in_a_catalogue: Path) -> None:
    page = ROOT / "docs" / "release.md"
    for name, text in (("held-out.txt", "scripture.txt"), ("calibration.txt", "manual.txt")):
        (in_a_catalogue / name).write_text(text_of(ROOT / "tests" / "cli" / "texts" / text), encoding="utf-8")
    made = next(words for words in commands_of(page) if words[1:3] == ["release", "bruce"])
    outcome = moe_gguf(*made[1:], "--no-speed")
    assert outcome.status == 0, outcome.stderr
    listed = set(re.findall(r"^\| ([^|]+) \|", text_of(page).partition("### What is in the folder")[2], re.MULTILINE))
    names = {name for cell in listed for name in re.findall(r"`([^`]+)`", cell)}
    for path in (in_a_catalogue / "bruce-GGUF").iterdir():
        name = re.sub(r"-(?:IQ|Q)[0-9]\w*$", "-TYPE", path.name.replace("Bruce-4x1.1M", "NAME").removesuffix(".gguf"))
        assert {name, f"{name}.gguf", f"{name}/"} & names, path.name


def test_the_python_page_runs(in_a_catalogue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = next(block for kind, block in FENCE.findall(text_of(ROOT / "docs" / "python.md")) if kind == "python")
    assert len([line for line in script.splitlines() if line]) < 15
    printed = io.StringIO()
    monkeypatch.setattr("sys.stdout", printed)
    exec(script, {})
    lines = printed.getvalue().splitlines()
    assert "Q4_K_M.gguf" in lines[0] and "bits per weight" in lines[1] and len(lines) > 2
    assert Path("bruce-BF16.gguf").is_file()


def test_the_pages_have_every_family_and_type() -> None:
    families, types = text_of(ROOT / "docs" / "convert.md"), text_of(ROOT / "docs" / "quantize.md")
    for name, architecture in FAMILIES.items():
        row = next(line for line in families.splitlines() if line.startswith("|") and f"`{name}`" in line)
        assert f"`{architecture.name}`" in row
    rows = {name: line for line in types.splitlines() for name in re.findall(r"[A-Z]+\w*", line.split(" | ")[0])}
    for file_type in FILE_TYPES:
        assert file_type.name in rows or f"{file_type.name} is there once" in types, file_type.name
    for name, row in rows.items():
        needing = [one.needs_imatrix for one in FILE_TYPES if one.name == name]
        assert not needing or needing[0] == bool(re.search("needs? an imatrix", row)), name


def texts_in(path: Path) -> list[str]:
    """Return the texts in a module's code, "..." where something is put in."""
    texts = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = [str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values]
            texts.append("".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
    return texts


@pytest.mark.parametrize("page", ["docs/convert.md", "docs/quantize.md", "docs/troubleshooting.md"])
def test_refusals_are_quoted_as_they_are(page: str) -> None:
    table = text_of(ROOT / page).partition("## When it refuses")[2].partition("\n## ")[0]
    quoted = re.findall(
        r"`([^`]+)`", "\n".join(line.split(" | ")[0] for line in table.splitlines() if line[:3] == "| `")
    )
    assert len(quoted) > 10
    said = [text for folder in CODE_FOLDERS for path in (ROOT / folder).rglob("*.py") for text in texts_in(path)]
    for quote in quoted:
        parts = [part.strip() for part in quote.split("...") if part.strip()]
        assert any(all(part in text for part in parts) for text in said), quote


def keys_of(report: Any) -> set[str]:
    """Return the keys of a report at all depths; those of `errors` and `ignored` are names, not keys."""
    if isinstance(report, list):
        return {key for each in report for key in keys_of(each)}
    if not isinstance(report, dict):
        return set()
    return {*report} | {key for name in report if name not in ("errors", "ignored") for key in keys_of(report[name])}


def test_the_pages_have_every_key_of_the_reports(in_a_catalogue: Path) -> None:
    write_checkpoint(in_a_catalogue / "narrow", Tiny(n_embd=64, n_ff=96))
    convert, quantize = (text_of(ROOT / "docs" / name) for name in ("convert.md", "quantize.md"))
    reports = [
        moe_gguf("convert", "narrow", "--split-max-size", "100K", "--json"),
        moe_gguf("convert", "narrow", "--dry-run", "--json"),
        moe_gguf("quantize", "narrow", "--type", "Q4_K_M", "--measure", "--json"),
    ]
    keys = [keys_of(json.loads(outcome.stdout)) for outcome in reports]
    assert {"shards", "seconds", "ignored"} <= keys[0] and "dry_run" in keys[1] and {"wanted", "errors"} <= keys[2]
    for key in keys[0] | keys[1]:
        assert f"`{key}`" in convert, key
    for key in keys[2]:
        assert f"`{key}`" in convert + quantize, key
