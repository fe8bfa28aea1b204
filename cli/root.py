"""The command `moe-gguf`: loads a verb's module only when that verb is used, and turns errors into one line."""

import importlib
import sys

import click

from ..formats.errors import MoeGgufError

VERBS = {
    "demo": "Build and ask a small mixture of experts, step by step.",
    "merge": "Merge dense models into a mixture-of-experts checkpoint.",
    "convert": "Write a checkpoint or a merge recipe as GGUF.",
    "quantize": "Write every quantization of a model in one pass.",
    "inspect": "Show what is in a GGUF file or a checkpoint.",
    "calibrate": "Fit the routers of a GGUF to texts of each expert.",
    "regate": "Swap the routers of a GGUF for others.",
    "fit": "Plan what of a model goes on which device.",
    "devices": "List the devices that llama.cpp can use here.",
    "worker": "Serve this machine's devices to another one.",
    "bench": "Measure prompt processing and generation.",
    "generate": "Complete a prompt.",
    "chat": "Talk to a model.",
}


class Verbs(click.Group):
    """A group whose commands are the modules of this folder, each with a click command named `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of a model's life."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import `cli/<verb>.py` and return its command."""
        if cmd_name not in VERBS:
            return None
        return importlib.import_module(f".{cmd_name}", __package__).command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs from the table, so that `--help` imports none of them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


def print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    """Print the installed version and leave."""
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"moe-gguf {version('moe-gguf')}")
        ctx.exit()


@click.command(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=print_version, help="Print the version."
)
def root() -> None:
    """Merge, convert, quantize and run mixture-of-experts models as GGUF, on the computer you have."""


def run(arguments: list[str] | None = None) -> None:
    """Run the command line; exit with 0, 1 (it failed, one line on stderr) or 2 (bad usage)."""
    try:
        root.main(args=arguments, prog_name="moe-gguf", standalone_mode=False)
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("moe-gguf: interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except (MoeGgufError, OSError, MemoryError) as error:
        click.echo(f"moe-gguf: {describe(error)}", err=True)
        sys.exit(1)


def describe(error: BaseException) -> str:
    """Return an error's message as one line."""
    if isinstance(error, MemoryError):
        return "not enough memory for this operation"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())
