"""`moe-gguf calibrate`: the routers of any mixture in GGUF are fitted to texts, one per expert."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..formats.errors import MoeGgufError
from .models import MODEL
from .numbers import FiniteRange
from .terminal import verbosity
from .text_files import read_text_file

if TYPE_CHECKING:
    from ..formats.gguf_file import GgufFile
    from ..runner.model import Model
    from .calibration import Text


FINITE = FiniteRange(min=0, min_open=True)
SHARPNESS = FiniteRange(min=0, min_open=True, max=1000)


@click.command()
@click.argument("model", type=MODEL)
@click.argument("texts", nargs=-1, metavar="[NAME=FILE]...")
@click.option("--texts", "first", multiple=True, metavar="NAME=FILE...", help="The texts, one for each expert.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="GATES", help="File to write.")
@click.option("--tokens", type=click.IntRange(64), default=2560, show_default=True, help="Tokens of each to fit to.")
@click.option("--held-out", type=click.IntRange(2), default=2048, show_default=True, help="Tokens of each to judge.")
@click.option(
    "--rounds",
    type=click.IntRange(1, 4),
    default=1,
    show_default=True,
    help="Fits, each routed by the one before.",
)
@click.option("-c", "--ctx-size", type=click.IntRange(16), default=512, show_default=True, help="Tokens read at once.")
@click.option("--ridge", type=FINITE, default=1e-3, show_default=True, help="L2 penalty of the regression.")
@click.option("--sharpness", type=SHARPNESS, help="Factor of the routers' scores  [default: chosen by the loss]")
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
    """Refuse an output that is an input, exists, or has no folder, before anything is computed. Raises OutputError.

    `force` is for gates: what is none of them is never overwritten.
    """
    from ..formats.errors import OutputError
    from ..formats.gguf_file import same_file
    from ..merge.gates import load_gates

    if any(same_file(output, path) for path in inputs):
        raise OutputError(f"{output}: the output is an input; choose another name")
    if output.is_dir():
        raise OutputError(f"{output}: is a folder; name a file")
    if not output.absolute().parent.is_dir():
        raise OutputError(f"{output.parent}: no such folder; create it first")
    if output.exists() and not force:
        raise OutputError(f"{output}: exists already; choose another name, or overwrite it with --force")
    if output.exists():
        try:
            load_gates(output)
        except MoeGgufError:
            raise OutputError(f"{output}: is no file of gates, so --force leaves it; choose another name") from None


def check_routing(file: "GgufFile") -> None:
    """Refuse a model whose routers choose by more than their scores. Raises GgufError."""
    from ..formats.errors import GgufError

    if biases := [name for name in file.tensors if ".exp_probs_b" in name]:
        raise GgufError(f"{file.path}: experts are chosen with a bias ({biases[0]}), which calibrate does not fit")


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
    import numpy as np

    from ..formats.gguf_file import read_gguf
    from ..merge.gates import Gates, check_gates, save_gates
    from ..merge.regate import read_routers, router_shape
    from ..runner.load_options import LoadOptions
    from ..runner.model import Model
    from .calibration import choose_sharpness, fit_gates, losses_of
    from .models import resolve_gguf
    from .terminal import emit_json, warn

    path = resolve_gguf(model)
    file = read_gguf(path)
    shape = router_shape(file)
    check_routing(file)
    check_output(output, [*file.shards, *(Path(text.partition("=")[2]) for text in texts)], force)
    own = read_routers(file)
    contents = read_texts(texts, shape[1], file.path.name)
    with Model(path, LoadOptions()) as mixture:
        split = tokenized(mixture, contents, tokens, held_out)
        judged = {text.name: text.held_out for text in split}
        losses = {"before": losses_of(mixture, judged, ctx_size)}
    routers, report = fit_gates(path, split, shape, ctx_size, ridge)
    reports = [report]
    for _ in range(1, rounds):
        routers, report = fit_gates(path, split, shape, ctx_size, ridge, routers)
        reports.append(report)
    with Model(path, LoadOptions()) as mixture:
        if sharpness is None:
            sharpness = choose_sharpness(mixture, routers, split, ctx_size)
        losses["after"] = losses_of(mixture, judged, ctx_size, routers, sharpness)
    gates = Gates(np.float32(sharpness) * routers, own.shared)
    check_gates(gates, *shape, 0, path.name)
    save_gates(output, gates, {"model": path.name, "texts": " ".join(texts), "ridge": str(ridge)})
    report = {"output": str(output), "rounds": reports, "sharpness": sharpness, "loss": losses}
    if as_json:
        emit_json(report)
    else:
        show(report, split)
    if mean(losses["after"]) > mean(losses["before"]):
        warn("the held-out loss became larger: the routers that the model has are better; give more text of each kind")


def mean(losses: Mapping[str, float]) -> float:
    """Return the mean over texts."""
    return sum(losses.values()) / len(losses)


def read_texts(texts: Sequence[str], n_expert: int, model: str) -> list[tuple[str, int, str]]:
    """Read NAME=FILE arguments: (name, expert, content). Raises MoeGgufError when they do not fit the experts."""
    named: list[tuple[str, int, str]] = []
    times: Counter[str] = Counter()
    for index, argument in enumerate(texts):
        name, equals, path = argument.partition("=")
        if not equals or not name or not Path(path).is_file():
            raise MoeGgufError(f"{argument!r}: write NAME=FILE with a file that is there, as python=a.txt")
        expert = int(name) if name.isdecimal() else index
        if expert >= n_expert:
            raise MoeGgufError(f"{argument}: {model} has {n_expert} experts, 0 to {n_expert - 1}")
        times[name] += 1
        named.append((name if times[name] == 1 else f"{name}-{times[name]}", expert, read_text_file(path)))
    missing = sorted(set(range(n_expert)) - {expert for _, expert, _ in named})
    if missing:
        raise MoeGgufError(f"no text for expert {', '.join(map(str, missing))} of {model}; give each one")
    return named


def tokenized(model: "Model", named: Sequence[tuple[str, int, str]], n_token: int, n_held_out: int) -> "list[Text]":
    """Cut texts into tokens of the model, to fit, to tune and to judge. Raises MoeGgufError for too short ones."""
    from ..runner.model import tokenize
    from .calibration import split_texts

    texts = split_texts(named, lambda text: tokenize(model, text, False, False), n_token, n_held_out)
    for text in texts:
        if len(text.held_out) < 2:
            raise MoeGgufError(f"text {text.name} is too short to be judged by; give ten tokens or more")
    return texts


def show(report: Mapping[str, Any], texts: "Sequence[Text]") -> None:
    """Print the report: losses per text, accuracy and entropy per layer, loads."""
    before, after = report["loss"]["before"], report["loss"]["after"]
    click.echo("held-out loss (nats a token)")
    for text in texts:
        click.echo(f"  {text.name:<16} {before[text.name]:.3f} -> {after[text.name]:.3f}")
    click.echo(f"  {'mean':<16} {mean(before):.3f} -> {mean(after):.3f}")
    last = report["rounds"][-1]
    click.echo("share of each text's tokens per expert")
    for name, loads in last["load"].items():
        click.echo(f"  {name:<16} " + " ".join(f"{share:6.1%}" for share in loads))
    click.echo(f"sharpness {report['sharpness']} (factor of the routers' scores; the table below is before it)")
    click.echo("layer  accuracy  entropy")
    for layer, (accuracy, entropy) in enumerate(zip(last["accuracy"], last["entropy"], strict=True)):
        click.echo(f"{layer:5}  {accuracy:8.1%}  {entropy:7.3f}")
    click.echo(f"gates saved to {report['output']}")
