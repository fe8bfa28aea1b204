"""Writes docs/cli.md from what every verb says with --help; run it after changing an option.

python docs/make_cli.py
"""

from pathlib import Path

import click
from moe_gguf.cli.root import VERBS, root

PAGE = Path(__file__).parent / "cli.md"
WIDTH = 78
INTRODUCTION = """\
# The command line

Written by `python docs/make_cli.py` from what `--help` prints. Conventions of every verb:

- A MODEL or SOURCE is a path (a checkpoint folder, a GGUF file, a merge recipe) or a name of the
  [catalogue](catalogue.md); a path wins over a name, and without one the catalogue's default is meant.
- The exit status is 0, or 1 when it failed (with one line on stderr that says why), 2 for bad usage, 130 after Ctrl-C.
- Reports go to stdout, everything else to stderr. `--json` prints the report as JSON, `-q` only results and errors,
  `-v` details.

## Shell completion

Verbs, options, files and the names of the catalogue complete with the tab key. Add one line to the shell's start file:

| shell | file | line |
|---|---|---|
| bash (4.4 or later) | `~/.bashrc` | `eval "$(_MOE_GGUF_COMPLETE=bash_source moe-gguf)"` |
| zsh | `~/.zshrc` | `eval "$(_MOE_GGUF_COMPLETE=zsh_source moe-gguf)"` |
| fish | `~/.config/fish/completions/moe-gguf.fish` | `_MOE_GGUF_COMPLETE=fish_source moe-gguf \\| source` |

## moe-gguf
"""


def help_of(context: click.Context) -> str:
    """Return a command's help as it prints it in a terminal of 80 columns."""
    return f"```\n{context.command.get_help(context).rstrip()}\n```\n"


def page() -> str:
    """Return docs/cli.md."""
    top = root.make_context("moe-gguf", [], resilient_parsing=True, terminal_width=WIDTH)
    parts = [INTRODUCTION, help_of(top)]
    for verb in VERBS:
        command = root.get_command(top, verb)
        if command is None:
            raise LookupError(verb)
        parts += [f"## moe-gguf {verb}\n", help_of(command.make_context(verb, [], top, resilient_parsing=True))]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
