"""The command `moe-gguf`: loads a verb's module only when it is used, and turns errors into one line."""

import importlib
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click
from click.shell_completion import CompletionItem

from ..formats.errors import Interrupted, MoeGgufError
from ..jobs.sources import CATALOGUE_VARIABLE
from .models import CATALOGUE
from .process import ended_status
from .visible import visible

# What a shell reports of a program that SIGPIPE ended: 128 and the number of the signal.
SIGPIPE_STATUS = 141

VERBS = {
    "demo": "Build a small mixture of experts and ask it a question.",
    "merge": "Merge dense models into a mixture-of-experts checkpoint.",
    "convert": "Write a checkpoint or a merge recipe as GGUF.",
    "quantize": "Write every quantization of a model in one pass.",
    "sensitivity": "Measure which roles and layers suffer most from few bits.",
    "inspect": "Show what is in a GGUF file or a checkpoint.",
    "calibrate": "Fit a GGUF's routers to sample texts for each expert.",
    "regate": "Replace the routers of a GGUF.",
    "prune-experts": "Drop the experts that matter least.",
    "upgrade": "Bring an old GGUF file up to date.",
    "edit": "Change the metadata of a GGUF file.",
    "split": "Cut a GGUF file into shards.",
    "join": "Join the shards of a GGUF file.",
    "cache": "List or clear what is kept between runs.",
    "fit": "Plan which parts of a model go on which device.",
    "devices": "List the devices that llama.cpp can use here.",
    "worker": "Offer this machine's devices to another machine.",
    "eval": "Ask a model the tasks of lm-evaluation-harness.",
    "bench": "Measure prompt processing and generation.",
    "imatrix": "Measure which weights matter, for quantize.",
    "routes": "Show which experts each token goes to.",
    "perplexity": "Measure how well a model predicts a text.",
    "compare": "Measure what quantizations change, against a base.",
    "release": "Make a folder to publish: files, measurements, card.",
    "generate": "Complete a prompt.",
    "chat": "Talk to a model.",
    "serve": "Serve a model over HTTP, with a page to chat.",
    "verify": "Check GGUF files, here or on the hub, against their source.",
    "publish": "Send a release folder to the hub.",
}


def module_of(verb: str) -> str:
    """Return the full name of a verb's module, whose command is named `command`."""
    return f"{__package__}.{verb.replace('-', '_')}"


class Verbs(click.Group):
    """A group whose commands are the modules of this folder, each with a click command named `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of a model's life."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import `cli/<verb>.py` (with _ for -) and return its command."""
        if cmd_name not in VERBS:
            return None
        return importlib.import_module(module_of(cmd_name)).command

    def make_context(self, *arguments: Any, **extra: Any) -> click.Context:
        """Parse; who reads `--help` may stop reading it."""
        with closed_pipe():
            return super().make_context(*arguments, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; who reads its output may stop reading it."""
        with closed_pipe():
            return super().invoke(ctx)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb; an unknown one is bad usage that names the nearest known."""
        verb = args[0]
        if verb not in VERBS and not verb.startswith("-"):
            import difflib

            near = difflib.get_close_matches(verb, VERBS, 1)
            advice = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(VERBS)}"
            ctx.fail(f"no verb {verb!r}; {advice}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs from the table, so that `--help` imports none of them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a verb from the table, so that the tab key imports none of them either."""
        verbs = [CompletionItem(verb, help=text) for verb, text in VERBS.items() if verb.startswith(incomplete)]
        return verbs + click.Command.shell_complete(self, ctx, incomplete)


@contextmanager
def closed_pipe() -> Iterator[None]:
    """End quietly when the reader of our output went away (`moe-gguf inspect MODEL | head -1`), as SIGPIPE would."""
    try:
        yield
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (sys.stdout, sys.stderr):
            # What is still buffered is written when the interpreter ends; a stream may have no descriptor.
            with suppress(OSError, ValueError):
                os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        raise click.exceptions.Exit(SIGPIPE_STATUS) from None


def print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    """Print the installed version and leave."""
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"moe-gguf {version('moe-gguf')}")
        ctx.exit()


@click.command(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=print_version,
    help="Print the version.",
)
@click.option(
    "--catalogue",
    type=click.Path(dir_okay=False),
    envvar=CATALOGUE_VARIABLE,
    show_envvar=True,
    help="Read model names from this file.  [default: ./models.toml]",
)
@click.pass_context
def root(ctx: click.Context, catalogue: str | None) -> None:
    """Merge, convert, quantize and run mixture-of-experts models as GGUF, on the computer you have."""
    ctx.meta[CATALOGUE] = catalogue


def run(arguments: list[str] | None = None) -> None:
    """Run the command line; exit with 0, 1 (failed, with one line), 2 (bad usage), 130 (Ctrl-C), 141 or 143."""
    for stream, errors in ((sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace"), (sys.stdin, "replace")):
        # A terminal of another encoding, or a text that is no UTF-8, must not end a report or a chat.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    try:
        # Outside its standalone mode click returns what `ctx.exit` was given, or a command's value, None.
        status = root.main(args=arguments, prog_name="moe-gguf", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (KeyboardInterrupt, click.Abort) as error:
        tell("interrupted")
        status = ended_status(error)
    except Interrupted as error:
        tell(describe(error))
        status = ended_status(error)
    except (MoeGgufError, OSError, MemoryError) as error:
        tell(describe(error))
        status = 1
    sys.exit(status)


def tell(message: str) -> None:
    """Print the last words; a terminal that was closed hears none."""
    with suppress(OSError):
        click.echo(visible(f"moe-gguf: {message}"), err=True)


def describe(error: BaseException) -> str:
    """Return an error's message as one line."""
    if isinstance(error, MemoryError):
        return "not enough memory for this operation"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())
