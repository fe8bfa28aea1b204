"""`moe-gguf calibrate`: the routers of any mixture in GGUF are fitted to texts, one per expert."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..formats.errors import MoeGgufError
from .models import MODEL
from .terminal import verbosity

if TYPE_CHECKING:
    from ..formats.gguf_file import GgufFile
    from .calibration import Text


class Finite(click.FloatRange):
    """A number above zero that is neither infinite nor NaN."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number; NaN and infinity are bad usage."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


FINITE = Finite(min=0, min_open=True)


@click.command()
@click.argument("model", type=MODEL)
@click.argument("texts", nargs=-1, metavar="[NAME=FILE]...")
@click.option("--texts", "first", multiple=True, metavar="NAME=FILE...", help="The texts, one for each expert.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="GATES", help="File to write.")
@click.option("--tokens", type=click.IntRange(64), default=2560, show_default=True, help="Tokens of each to fit to.")
@click.option("--held-out", type=click.IntRange(2), default=2048, show_default=True, help="Tokens of each to judge.")
@click.option("--rounds", type=click.IntRange(1, 4), default=2, show_default=True, help="Fits, each on the last one's.")
@click.option("-c", "--ctx-size", type=click.IntRange(16), default=512, show_default=True, help="Tokens read at once.")
@click.option("--ridge", type=FINITE, default=1e-3, show_default=True, help="L2 penalty of the regression.")
@click.option("--sharpness", type=FINITE, help="Factor of the routers' scores  [default: chosen by the loss]")
@click.option("-f", "--force", is_flag=True, help="Overwrite the output.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@verbosity
def command(model: str, texts: tuple[str, ...], first: tuple[str, ...], **options: Any) -> None:
    """Fit the routers of MODEL, so that each kind of text goes to its expert.

    One text for each expert, in the experts' order: --texts python=a.txt german=b.txt; or the expert's number as the
    name, from 0, as often as you like. The result goes into a GGUF with: moe-gguf regate MODEL GATES -o OUT.
    """
    calibrate(model, (*first, *texts), **options)


def check_output(output: Path, inputs: Sequence[Path], force: bool) -> None:
    """Refuse an output that is an input, exists, or has no folder, before anything is computed. Raises OutputError."""
    from ..formats.errors import OutputError
    from ..formats.gguf_file import same_file

    if any(same_file(output, path) for path in inputs):
        raise OutputError(f"{output}: the output is an input; choose another name")
    if output.is_dir():
        raise OutputError(f"{output}: is a folder; name a file")
    if not output.absolute().parent.is_dir():
        raise OutputError(f"{output.parent}: no such folder; create it first")
    if output.exists() and not force:
        raise OutputError(f"{output}: exists already; choose another name, or overwrite it with --force")


def calibrate(
    model: str,
    texts: Sequence[str],
    output: Path,
    tokens: int,
    held_out: int,
    rounds: int,
    ctx_size: int,
    ridge: float,
    sharpness: float | None,
    force: bool,
    as_json: bool,
) -> None:
    """Tokenize, fit, measure before and after, save, report."""
    from tempfile import TemporaryDirectory

    import numpy as np

    from ..formats.gguf_file import read_gguf
    from ..merge.gates import Gates, save_gates
    from ..merge.regate import read_routers, regate, router_shape
    from .calibration import choose_sharpness, fit_gates, held_out_losses
    from .models import resolve_gguf
    from .terminal import emit_json

    path = resolve_gguf(model)
    file = read_gguf(path)
    shape = router_shape(file)
    check_output(output, [path, *(Path(text.partition("=")[2]) for text in texts)], force)
    split = read_texts(file, texts, shape[1], tokens, held_out)
    losses = {"before": held_out_losses(path, split, ctx_size)}
    gates: Gates = read_routers(file)
    reports: list[Mapping[str, Any]] = []
    with TemporaryDirectory(prefix="moe-gguf-", dir=output.absolute().parent) as folder:
        current = path
        for _ in range(rounds):
            fitted, report = fit_gates(current, split, shape, ctx_size, ridge)
            gates = Gates(fitted.routers, gates.shared)
            reports.append(report)
            current = regate(file, gates, Path(folder) / "calibrated.gguf", force=True)[0]
        if sharpness is None:
            sharpness = choose_sharpness(file, gates, split, ctx_size, Path(folder))
        gates = Gates(np.float32(sharpness) * gates.routers, gates.shared)
        current = regate(file, gates, Path(folder) / "calibrated.gguf", force=True)[0]
        losses["after"] = held_out_losses(current, split, ctx_size)
    save_gates(output, gates, {"model": path.name, "texts": " ".join(texts), "ridge": str(ridge)})
    report = {"output": str(output), "rounds": reports, "sharpness": sharpness, "loss": losses}
    if as_json:
        emit_json(report)
    else:
        show(report, split)


def read_texts(file: "GgufFile", texts: Sequence[str], n_expert: int, n_token: int, n_held_out: int) -> "list[Text]":
    """Read and tokenize NAME=FILE arguments. Raises MoeGgufError when they do not fit the experts."""
    from ..runner.load_options import LoadOptions
    from ..runner.model import Model, tokenize
    from .calibration import split_texts

    named: list[tuple[str, int, str]] = []
    for index, argument in enumerate(texts):
        name, equals, path = argument.partition("=")
        if not equals or not name or not Path(path).is_file():
            raise MoeGgufError(f"{argument!r}: write NAME=FILE with a file that is there, as python=a.txt")
        expert = int(name) if name.isdecimal() else index
        if expert >= n_expert:
            raise MoeGgufError(f"{argument}: {file.path.name} has {n_expert} experts, 0 to {n_expert - 1}")
        named.append((name, expert, Path(path).read_text(encoding="utf-8", errors="replace")))
    missing = sorted(set(range(n_expert)) - {expert for _, expert, _ in named})
    if missing:
        raise MoeGgufError(f"no text for expert {', '.join(map(str, missing))} of {file.path.name}; give each one")
    with Model(file.path, LoadOptions(n_gpu_layers=0)) as model:
        return split_texts(named, lambda text: tokenize(model, text, False, False), n_token, n_held_out)


def show(report: Mapping[str, Any], texts: "Sequence[Text]") -> None:
    """Print the report: losses per text, accuracy and entropy per layer, loads."""
    before, after = report["loss"]["before"], report["loss"]["after"]
    click.echo("held-out loss (nats a token)")
    for text in texts:
        click.echo(f"  {text.name:<16} {before[text.name]:.3f} -> {after[text.name]:.3f}")
    mean = [sum(one.values()) / len(one) for one in (before, after)]
    click.echo(f"  {'mean':<16} {mean[0]:.3f} -> {mean[1]:.3f}")
    last = report["rounds"][-1]
    click.echo("share of each text's tokens per expert")
    for name, loads in last["load"].items():
        click.echo(f"  {name:<16} " + " ".join(f"{share:6.1%}" for share in loads))
    click.echo(f"sharpness {report['sharpness']} (factor of the routers' scores; the table below is before it)")
    click.echo("layer  accuracy  entropy")
    for layer, (accuracy, entropy) in enumerate(zip(last["accuracy"], last["entropy"], strict=True)):
        click.echo(f"{layer:5}  {accuracy:8.1%}  {entropy:7.3f}")
    click.echo(f"gates saved to {report['output']}")
