"""Fitting the routers of any mixture in GGUF to texts, one per expert."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..formats.errors import GgufError, MoeGgufError, OutputError
from ..formats.text_files import read_text_file
from .listener import SILENT, Listener
from .loading import DEFAULT_LOAD, LoadRequest
from .sources import resolve_gguf

if TYPE_CHECKING:
    from ..formats.gguf_file import GgufFile
    from ..merge.gates import Gates
    from ..runner.model import Model
    from .calibration import Fit, Text


@dataclass(frozen=True)
class Request:
    """A GGUF file or a name of `catalogue`, texts, and the file to write.

    A text is name=file, in the order of the experts, or with an expert's number as its name. `n_fit` and `n_held_out`
    are tokens of each text; `n_ctx` tokens are read at once; `sharpness` None is chosen by the loss.
    """

    model: str | Path | None
    texts: tuple[str, ...]
    output: Path
    catalogue: Path | None = None
    n_fit: int = 2560
    n_held_out: int = 2048
    rounds: int = 1
    n_ctx: int = 512
    ridge: float = 1e-3
    sharpness: float | None = None
    force: bool = False
    load: LoadRequest = DEFAULT_LOAD


@dataclass(frozen=True)
class Prepared:
    """A mixture whose header was read, the routers that it has, and the texts: (name, expert, content)."""

    request: Request
    path: Path
    shape: tuple[int, int, int]
    own: "Gates"
    contents: tuple[tuple[str, int, str], ...]


@dataclass(frozen=True)
class Report:
    """How well the routers fit in each round, and the held-out losses before and after, in nats a token by text."""

    output: Path
    rounds: "tuple[Fit, ...]"
    sharpness: float
    before: Mapping[str, float]
    after: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        """Return what `calibrate --json` prints."""
        return {
            "output": str(self.output),
            "rounds": [fit.as_json() for fit in self.rounds],
            "sharpness": self.sharpness,
            "loss": {"before": dict(self.before), "after": dict(self.after)},
        }


def prepare(request: Request) -> Prepared:
    """Read the header and the texts. Raises MoeGgufError for a model without routers, texts that do not fit it, and an
    output in the way.
    """
    from ..formats.gguf_file import read_gguf
    from ..merge.regate import read_routers, router_shape

    path = resolve_gguf(request.model, request.catalogue)
    file = read_gguf(path)
    shape = router_shape(file)
    check_routing(file)
    texts = [Path(text.partition("=")[2]) for text in request.texts]
    check_output(request.output, [*file.shards, *texts], request.force)
    own = read_routers(file)
    return Prepared(request, path, shape, own, tuple(read_texts(request.texts, shape[1], file.path.name)))


def run(prepared: Prepared, listener: Listener = SILENT) -> Report:
    """Tokenize, fit, measure before and after, save. Raises MoeGgufError."""
    import numpy as np

    from ..merge.gates import Gates, check_gates, save_gates
    from .calibration import choose_sharpness, fit_gates, losses_of, reading
    from .loading import opened_model

    request, path, shape = prepared.request, prepared.path, prepared.shape
    wish = reading(request.load, request.n_ctx)
    with opened_model(path, wish, listener) as (mixture, options):
        split = tokenized(mixture, prepared.contents, request.n_fit, request.n_held_out)
        judged = {text.name: text.held_out for text in split}
        before = losses_of(mixture, options, judged, listener=listener)
    fits: list[Fit] = []
    routers = None
    for _ in range(request.rounds):
        routers, fit = fit_gates(path, split, shape, request.n_ctx, request.ridge, routers, request.load, listener)
        fits.append(fit)
    assert routers is not None
    with opened_model(path, wish, listener) as (mixture, options):
        sharpness = request.sharpness
        if sharpness is None:
            sharpness = choose_sharpness(mixture, options, routers, split, listener)
        after = losses_of(mixture, options, judged, routers, sharpness, listener)
    gates = Gates(np.float32(sharpness) * routers, prepared.own.shared)
    check_gates(gates, *shape, 0, path.name)
    save_gates(
        request.output, gates, {"model": path.name, "texts": " ".join(request.texts), "ridge": str(request.ridge)}
    )
    if mean(after) > mean(before):
        listener.warn(
            "the held-out loss became larger: the routers that the model has are better; give more text of each kind"
        )
    return Report(request.output, tuple(fits), sharpness, before, after)


def check_output(output: Path, inputs: Sequence[Path], force: bool) -> None:
    """Refuse an output that is an input, exists, or has no folder, before anything is computed. Raises OutputError.

    `force` is for gates: what is none of them is never overwritten.
    """
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
            raise OutputError(
                f"{output}: is not a gates file; --force will not overwrite it; choose another name"
            ) from None


def check_routing(file: "GgufFile") -> None:
    """Refuse a model whose routers choose by more than their scores. Raises GgufError."""
    if biases := [name for name in file.tensors if ".exp_probs_b" in name]:
        raise GgufError(f"{file.path}: experts are chosen with a bias ({biases[0]}), which calibrate does not fit")


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
            raise MoeGgufError(f"{argument!r}: write NAME=FILE with a file that is there, e.g. python=a.txt")
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
