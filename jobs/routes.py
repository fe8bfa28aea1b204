"""Where tokens go: a model and a text, or an importance matrix, come in; shares, loads and pictures go out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..formats.errors import GgufError, ImatrixError, MoeGgufError, OutputError, PlanError
from .listener import SILENT, Listener
from .loading import DEFAULT_LOAD, LoadRequest, opened_model
from .scoring import going_on
from .sources import resolve_gguf, resolve_source

if TYPE_CHECKING:
    import numpy as np

    from ..formats.gguf_file import GgufFile
    from ..measure.expert_load import Load
    from ..measure.routing import Routes
    from ..runner.model import Model

UBATCH = 512


@dataclass(frozen=True)
class Request:
    """A model and a text, or an importance matrix whose counts are the tokens of each expert.

    - other: another model, which reads the same text, and whose choices are compared.
    - recipe: the recipe or catalogue name whose experts give the names; None is the model's own, if it has any.
    - n_ctx: tokens that are read at once, each time with an empty context.
    - plot, page: files to write, a heat map and HTML.
    - tokens: whether the report has every token.
    """

    model: str | Path | None
    text: str | None = None
    file: Path | None = None
    imatrix: Path | None = None
    catalogue: Path | None = None
    other: str | Path | None = None
    recipe: str | Path | None = None
    n_ctx: int = 512
    n_token: int | None = None
    plot: Path | None = None
    page: Path | None = None
    tokens: bool = False
    force: bool = False
    load: LoadRequest = DEFAULT_LOAD


@dataclass(frozen=True)
class Prepared:
    """Headers that were read, the text, and names of the experts."""

    request: Request
    gguf: "GgufFile | None"
    other: "GgufFile | None"
    text: str | None
    names: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """Shares and tokens [n_layer, n_expert] by layer; with a text what each token did, with another model how often
    both agree.
    """

    experts: tuple[str, ...]
    n_expert_used: int | None
    layers: tuple[int, ...]
    shares: "np.ndarray"
    counts: "np.ndarray"
    load: "Load"
    routes: "Routes | None" = None
    pairs: "np.ndarray | None" = None
    texts: tuple[str, ...] = ()
    agreement: tuple[float, tuple[float, ...]] | None = None
    with_tokens: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return what `routes --json` prints."""
        report: dict[str, Any] = {
            "n_layer": len(self.layers),
            "n_expert": len(self.experts),
            "n_expert_used": self.n_expert_used,
            "experts": list(self.experts),
            "layers": [
                {"layer": layer, "share": share.tolist(), "tokens": count.tolist()}
                for layer, share, count in zip(self.layers, self.shares, self.counts, strict=True)
            ],
            "load": self.load.as_json(),
        }
        if self.pairs is not None:
            report["coactivation"] = self.pairs.tolist()
        if self.agreement:
            report["agreement"] = {"value": self.agreement[0], "layers": list(self.agreement[1])}
        if self.with_tokens and self.routes is not None:
            report["tokens"] = [
                {"text": text, "experts": self.routes.experts[:, i].tolist(), "weights": self._weights(i)}
                for i, text in enumerate(self.texts)
            ]
        return report

    def _weights(self, token: int) -> list[list[float]]:
        assert self.routes is not None
        return [[round(float(weight), 5) for weight in layer[token]] for layer in self.routes.weights]


def prepare(request: Request) -> Prepared:
    """Read headers and the text. Raises MoeGgufError for what does not fit together, or is in the way."""
    from ..formats.gguf_file import read_gguf
    from .imatrix import read_strict

    if sum(given is not None for given in (request.text, request.file, request.imatrix)) != 1:
        raise PlanError("give one of a text, a file and an importance matrix")
    gguf = other = text = None
    if request.imatrix is None or request.model is not None:
        gguf = read_gguf(resolve_gguf(request.model, request.catalogue))
        expert_count(gguf)
    if request.imatrix is not None and (request.other or request.page or request.tokens):
        raise PlanError("an importance matrix says nothing of single tokens: give a text instead")
    if request.other is not None:
        assert gguf is not None
        other = read_gguf(resolve_gguf(request.other, request.catalogue))
        if expert_count(other) != expert_count(gguf):
            raise GgufError(f"{other.path}: {expert_count(other)} experts, not {expert_count(gguf)} as {gguf.path}")
    for output in (request.plot, request.page):
        if output is not None:
            check_output(output, request.force)
    if request.plot is not None:
        from ..measure.routes_picture import check_picture

        check_picture(request.plot)
    if request.imatrix is None:
        text = request.text if request.text is not None else read_strict(request.file or Path())
        if not text:
            raise PlanError("the text is empty: there are no tokens to follow")
    return Prepared(request, gguf, other, text, expert_names(request))


def check_output(output: Path, force: bool) -> None:
    """Refuse an output that exists, or has no folder. Raises OutputError."""
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise OutputError(f"{output}: no file can be written there; name one in a folder that exists")
    if output.exists() and not force:
        raise OutputError(f"{output}: exists already; choose another name, or overwrite it with --force")


def expert_count(file: "GgufFile") -> int:
    """Return the experts of each layer. Raises GgufError for a dense model."""
    from gguf.constants import Keys

    n_expert = file.hyper(Keys.LLM.EXPERT_COUNT, 0)
    if not n_expert:
        raise GgufError(f"{file.path}: has no experts, so every token goes the same way")
    return n_expert


def expert_names(request: Request) -> tuple[str, ...]:
    """Return the experts' names from the recipe that is given, else from the model's own in the catalogue; or none."""
    from .opening import recipe_of

    if request.recipe is not None:
        return tuple(expert.name for expert in recipe_of(resolve_source(request.recipe, request.catalogue)).experts)
    try:
        source = resolve_source(request.model, request.catalogue)
        return tuple(expert.name for expert in recipe_of(source).experts) if source.recipe else ()
    except MoeGgufError:
        return ()


def named(names: Sequence[str], n_expert: int) -> tuple[str, ...]:
    """Return a name for each expert: numbers where there are none. Raises PlanError for names of another model."""
    if names and len(names) != n_expert:
        raise PlanError(f"the recipe has {len(names)} experts, and the model {n_expert}; name the model's own recipe")
    return tuple(names) or tuple(map(str, range(n_expert)))


def run(prepared: Prepared, listener: Listener = SILENT) -> Report:
    """Read the text, or the matrix, and write the pictures. Raises MoeGgufError."""
    report = _of_matrix(prepared) if prepared.text is None else _of_text(prepared, prepared.text, listener)
    request = prepared.request
    if request.plot:
        from ..measure.routes_picture import draw_heat_map

        title = (prepared.gguf.path if prepared.gguf else request.imatrix or Path()).name
        draw_heat_map(request.plot, report.shares, report.layers, report.experts, title)
    if request.page and report.routes is not None:
        from ..measure.routes_picture import write_page

        write_page(request.page, report.texts, report.routes.summed(), report.shares, report.layers, report.experts)
    return report


def _of_matrix(prepared: Prepared) -> Report:
    import numpy as np
    from gguf.constants import Keys

    from ..formats.imatrix_file import read_gguf_imatrix
    from ..measure.expert_load import load_of
    from ..models.tensor_roles import layer_of

    path = prepared.request.imatrix or Path()
    found = {
        layer: counts
        for name, (_, counts) in read_gguf_imatrix(path).entries.items()
        if "_exps." in name and (layer := layer_of(name)) is not None
    }
    if not found:
        raise ImatrixError(f"{path}: has no experts: a matrix of a dense model, or of one with experts in a .dat file")
    if len({len(counts) for counts in found.values()}) > 1:
        raise ImatrixError(f"{path}: its layers have different numbers of experts")
    layers = tuple(sorted(found))
    counts = np.stack([found[layer] for layer in layers])
    used = None
    if prepared.gguf:
        used = prepared.gguf.hyper(Keys.LLM.EXPERT_USED_COUNT, 0) or None
        if expert_count(prepared.gguf) != counts.shape[1]:
            raise ImatrixError(f"{path}: {counts.shape[1]} experts, and {prepared.gguf.path} has another number")
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    experts = named(prepared.names, counts.shape[1])
    return Report(experts, used, layers, shares, counts, load_of(layers, counts))


def _of_text(prepared: Prepared, text: str, listener: Listener) -> Report:
    from ..measure.agreement import Agreement
    from ..measure.expert_load import coactivation, load_of

    assert prepared.gguf is not None
    experts = named(prepared.names, expert_count(prepared.gguf))
    routes, texts = read(prepared.gguf, text, prepared.request, listener)
    agreement = None
    if prepared.other is not None:
        others, theirs = read(prepared.other, text, prepared.request, listener)
        if theirs != texts:
            raise GgufError(f"{prepared.other.path}: cuts the text into other tokens than {prepared.gguf.path}")
        found = Agreement()
        found.add(routes.by_layer(), others.by_layer())
        agreement = (found.value, tuple(found.layers))
    load = load_of(routes.layers, routes.tokens, routes.probabilities)
    return Report(
        experts,
        routes.experts.shape[2],
        routes.layers,
        routes.shares,
        routes.tokens,
        load,
        routes,
        coactivation(routes),
        texts,
        agreement,
        prepared.request.tokens,
    )


def read(gguf: "GgufFile", text: str, request: Request, listener: Listener) -> "tuple[Routes, tuple[str, ...]]":
    """Run a text through a model; return where its tokens went, and their texts."""
    from ..measure.routing import find_routes
    from ..runner.model import tokenize

    load = replace(request.load, n_ctx=request.n_ctx, n_batch=min(request.n_ctx, UBATCH), n_seq_max=1)
    with opened_model(gguf.path, load, listener) as (model, options):
        tokens = tokenize(model, text)[: request.n_token]
        windows = [tokens[at : at + request.n_ctx] for at in range(0, len(tokens), request.n_ctx)]
        with listener.bar(len(tokens), "routes", "tokens", 2) as bar, going_on():
            routes = find_routes(model, options, windows, expert_count(gguf), bar.update)
        return routes, token_texts(model, tokens)


def token_texts(model: "Model", tokens: Sequence[int]) -> tuple[str, ...]:
    """Return the text of each token; a character of several tokens belongs to the last of them."""
    import codecs

    from ..runner.model import piece, spell

    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return tuple(decoder.decode(piece(model, token) or spell(model, token, special=True)) for token in tokens)
