"""The files of a release: doctor, gates, reference, importance and the quantizations, each a step that is skipped when
nothing that it depends on has changed.

Long because the steps hand each other what they made.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..formats.errors import PlanError
from ..jobs.listener import SILENT, Listener
from ..jobs.opening import GateRequest
from ..jobs.sources import SourceKind
from .ledger import Ledger, digest
from .programs import versions
from .request import Request, Text
from .sources import Found, local_names

if TYPE_CHECKING:
    from ..jobs.quantize import VariantReport

RECIPE, GATES, IMATRIX, MOMENTS = "recipe.yml", "gates.safetensors", "imatrix.gguf", "moments.safetensors"
# A model runs well when it leaves this share of the memory to caches and to the system.
FITS = 0.8
MAKERS = ("moe-gguf", "llama-cpp-python", "gguf")


@dataclass(frozen=True)
class Made:
    """A GGUF file that is there: its type, its shards, and what quantize said of it (the JSON of one output)."""

    type: str
    paths: tuple[Path, ...]
    bits_per_weight: float
    mix: dict[str, str]
    fallen_back: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The file, or its first shard."""
        return self.paths[0]

    @property
    def n_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(path.stat().st_size for path in self.paths)


@dataclass(frozen=True)
class Maker:
    """One run of a release: what is asked, what it is made of, where it goes, what is known from before."""

    request: Request
    found: Found
    folder: Path
    work: Path
    ledger: Ledger
    listener: Listener = SILENT

    @property
    def programs(self) -> dict[str, str]:
        """The programs that have a say in the bytes."""
        return {name: version for name, version in versions().items() if name in MAKERS}

    def examine(self) -> tuple[str, ...]:
        """Let the merge doctor look at the recipe; return its warnings. Raises RecipeError for a broken one."""
        if self.found.recipe is None:
            return ()
        from ..jobs import merge

        inputs = digest([self.found.digest, self.programs])
        kept = self.ledger.kept("doctor", inputs)
        if kept is None:
            prepared = merge.prepare(merge.Request(self.found.argument, None, self.request.catalogue), self.listener)
            kept = self.ledger.done("doctor", inputs, list(prepared.findings))
        for name in local_names(self.found.recipe):
            self.listener.warn(f"{RECIPE}: names {name}, a folder of this machine, which nobody else can get")
        return tuple(kept)

    def make_gates(self) -> Path | None:
        """Compute a recipe's gates, or take those of a file, into the folder; None for what is no recipe."""
        if self.found.recipe is None:
            return None
        path, given = self.folder / GATES, self.request.gates.file
        chosen = self.ledger.sha256(given) if given and given.is_file() else None
        inputs = digest([self.found.digest, self.request.gates.base, chosen, self.programs])
        if self.ledger.kept("gates", inputs) is not None:
            return path
        if not self.ledger.whole("gates", inputs, [path]):
            self.ledger.begin("gates", inputs, [path], self.request.force)
            if given and chosen:
                _copy(given, path)
            else:
                path.unlink(missing_ok=True)
                self._compute_gates(path)
                if given:
                    _copy(path, given)
        self.ledger.done("gates", inputs, True, [path])
        return path

    def _compute_gates(self, path: Path) -> None:
        from ..jobs.gates import recipe_gates
        from ..jobs.opening import open_mixture

        opened = open_mixture(self.found.source, GateRequest(None, self.request.gates.base), listener=self.listener)
        assert opened.mixture is not None
        recipe_gates(opened.mixture.recipe, opened.mixture.models, path, self.request.gates.base, self.listener)

    def gate_request(self, gates: Path | None) -> GateRequest:
        """Return where jobs find the gates."""
        return GateRequest(gates, self.request.gates.base) if gates else GateRequest()

    def make_reference(self, gates: Path | None) -> Made:
        """Return what all is compared with: a GGUF source as it is, else the 16-bit conversion, else Q8_0.

        It lies beside the folder, for it is made to be run.
        """
        if self.found.source.kind is SourceKind.GGUF:
            return described(self.found.here)
        from ..jobs import convert

        request = self.request
        asks = convert.Request(
            self.found.argument,
            request.catalogue,
            outtype="auto",
            outfile=f"{self.work}/",
            pre_tokenizer=request.pre_tokenizer,
            gates=self.gate_request(gates),
            force=True,
            n_threads=request.n_threads,
        )
        inputs = digest(["reference", self._gated(gates), request.pre_tokenizer, request.reference, self.programs])
        known = {"16-bit": "auto", "q8_0": "q8_0", "auto": None}[request.reference]
        kept = self.ledger.kept("reference", inputs)
        if kept is not None:
            return made_of(self.folder, kept)
        prepared = convert.prepare(replace(asks, outtype=known or "auto"))
        if known is None and not runs_here(prepared.report().outputs[0].n_bytes):
            prepared = convert.prepare(replace(asks, outtype="q8_0"))
        paths = [path for path, _ in prepared.output.shards()]
        if not self.ledger.whole("reference", inputs, paths):
            self.ledger.begin("reference", inputs, paths, force=True)
            convert.run(prepared, self.listener)
        made = described(paths)
        self.ledger.done("reference", inputs, as_json(made, self.folder), paths)
        return made

    def _gated(self, gates: Path | None) -> str:
        return digest([self.found.digest, self.ledger.sha256(gates) if gates else None, self._catalogued()])

    def _catalogued(self) -> Any:
        entry = self.found.source.entry
        if entry is None:
            return None
        said = (entry.title, entry.description, entry.license, entry.language, entry.tags, entry.datasets)
        return [*map(str, said), entry.size_label]

    def make_importance(self, reference: "Made | None") -> tuple[Path | None, dict[str, Any]]:
        """Return the imatrix or the moments that types are rounded by, and what is known of them; None for neither."""
        request = self.request
        if request.rounding == "plain":
            return None, {}
        calibrated = request.rounding == "calibrated"
        path = self.work / MOMENTS if calibrated else self.folder / IMATRIX
        given = request.moments if calibrated else request.imatrix
        if given:
            return self._take_importance(given, path, calibrated)
        assert reference is not None
        texts = [[text.name, self.ledger.sha256(text.path)] for text in request.calibration]
        model = [self.ledger.sha256(one) for one in reference.paths]
        inputs = digest(["importance", request.rounding, texts, request.calibration_chunks, model, versions()])
        kept = self.ledger.kept("importance", inputs)
        if kept is None:
            outputs = [self.folder / IMATRIX, *([path] if calibrated else [])]
            self.ledger.begin("importance", inputs, outputs, request.force)
            kept = self.ledger.done("importance", inputs, self._collect(reference, path, calibrated), outputs)
        return path, kept

    def _take_importance(self, given: Path, path: Path, calibrated: bool) -> tuple[Path, dict[str, Any]]:
        if calibrated:
            return given, {}
        inputs = digest(["importance", self.ledger.sha256(given)])
        if self.ledger.kept("importance", inputs) is None:
            self.ledger.begin("importance", inputs, [path], self.request.force)
            _copy(given, path)
            self.ledger.done("importance", inputs, {}, [path])
        return path, {}

    def _collect(self, reference: Made, path: Path, calibrated: bool) -> dict[str, Any]:
        from ..jobs import imatrix

        request = self.request
        prepared = imatrix.prepare(
            imatrix.Request(
                reference.path,
                self.folder / IMATRIX,
                texts=tuple(text.path for text in request.calibration),
                text_names=tuple(text.name for text in request.calibration),
                n_chunk=request.calibration_chunks,
                moments=path if calibrated else None,
                force=True,
                load=request.load,
            )
        )
        report = imatrix.run(prepared, self.listener)
        return {
            "texts": list(report.datasets),
            "n_chunk": report.n_chunk,
            "n_ctx": report.n_ctx,
            "least": report.least,
            "model": reference.path.name,
        }

    def make_files(self, gates: Path | None, importance: Path | None, reference: "Made | None") -> list[Made]:
        """Make the types that are missing, all in one pass over the source; return all of them, as they were asked."""
        by_type = {name: digest(["file", name, self._bytes(gates, importance)]) for name in self.request.types}
        kept = {name: self.ledger.kept(f"file {name}", inputs) for name, inputs in by_type.items()}
        missing = [name for name in by_type if kept[name] is None]
        if missing:
            self._make_missing(missing, by_type, gates, importance)
            kept |= {name: self.ledger.kept(f"file {name}", by_type[name]) for name in missing}
        return [made_of(self.folder, kept[name]) for name in by_type]

    def _bytes(self, gates: Path | None, importance: Path | None) -> Any:
        request = self.request
        known = self.ledger.sha256(importance) if importance else None
        chosen = (request.tensor_types, request.pre_tokenizer, request.split_max_size, request.rounding)
        return [self._gated(gates), known, chosen, self.programs]

    def _make_missing(
        self, types: Sequence[str], by_type: dict[str, str], gates: Path | None, importance: Path | None
    ) -> None:
        from ..jobs import quantize

        prepared = quantize.prepare(self._quantizing(types, gates, importance), self.listener)
        paths = {
            name: [path for path, _ in output.shards()] for name, output in zip(types, prepared.outputs, strict=True)
        }
        left = [name for name in types if not self.ledger.whole(f"file {name}", by_type[name], paths[name])]
        for name in left:
            self.ledger.begin(f"file {name}", by_type[name], paths[name], self.request.force)
        if left:
            quantize.run(
                prepared if left == list(types) else quantize.prepare(self._quantizing(left, gates, importance)),
                self.listener,
            )
        for name, report in zip(types, prepared.report().outputs, strict=True):
            made = of_report(name, report)
            self.ledger.done(f"file {name}", by_type[name], as_json(made, self.folder), paths[name])

    def _quantizing(self, types: Sequence[str], gates: Path | None, importance: Path | None) -> Any:
        from ..jobs import quantize
        from ..models.tensor_types import parse_tensor_type_option
        from ..quantize.choices import MixOptions
        from ..quantize.file_types import parse_file_type
        from ..quantize.stock_policy import stock

        request = self.request
        calibrated = request.rounding == "calibrated"
        return quantize.Request(
            self.found.argument,
            tuple(stock(parse_file_type(name)) for name in types),
            request.catalogue,
            outfile=f"{self.folder}/",
            imatrix=None if calibrated else importance,
            moments=importance if calibrated else None,
            known_as=IMATRIX,
            from_gguf=False,
            options=MixOptions(tensor_types=tuple(map(parse_tensor_type_option, request.tensor_types))),
            split_max_size=request.split_max_size,
            pre_tokenizer=request.pre_tokenizer,
            gates=self.gate_request(gates),
            verify=True,
            force=True,
            n_threads=request.n_threads,
        )


def _copy(source: Path, target: Path) -> None:
    """Copy a small file under a temporary name first; onto itself it stays."""
    partial = target.with_name(target.name + ".partial")
    partial.write_bytes(source.read_bytes())
    partial.replace(target)


def runs_here(n_bytes: int) -> bool:
    """Tell whether a model of this size runs on this machine without being read from the disk again and again."""
    from ..runner.limits import system_memory

    return n_bytes < FITS * system_memory()[1]


def of_report(name: str, report: "VariantReport") -> Made:
    """Return what quantize says of a file that it wrote."""
    output = report.output
    mix = {entry.name: entry.qtype.name for entry in output.output.entries}
    fallen = tuple(tensor for fallback in report.fallbacks for tensor in fallback.names)
    return Made(name, tuple(path for path, _ in output.output.shards()), output.bits_per_weight, mix, fallen)


def described(paths: Sequence[Path]) -> Made:
    """Return what the header of a file says: its type, its mix."""
    from ..formats.gguf_file import read_gguf
    from ..models.summary import summarize_gguf

    file = read_gguf(paths[0])
    summary = summarize_gguf(file)
    mix = {name: tensor.qtype.name for name, tensor in file.tensors.items()}
    return Made(summary.file_type or "GGUF", tuple(file.shards), summary.bits_per_weight, mix)


def as_json(made: Made, folder: Path) -> dict[str, Any]:
    """Return what the ledger keeps of a file; its paths relative to the release folder."""
    import os

    return {
        "type": made.type,
        "paths": [Path(os.path.relpath(path, folder)).as_posix() for path in made.paths],
        "bpw": made.bits_per_weight,
        "mix": made.mix,
        "fallen_back": list(made.fallen_back),
    }


def made_of(folder: Path, kept: Any) -> Made:
    """Return a file that the ledger knows."""
    if kept is None:
        raise PlanError(f"{folder}: a file that was just made is gone; run the same command again")
    paths = tuple(folder / name for name in kept["paths"])
    return Made(kept["type"], paths, kept["bpw"], dict(kept["mix"]), tuple(kept["fallen_back"]))


def texts_of(texts: Sequence[Text], ledger: Ledger) -> list[list[str]]:
    """Return names and hashes of texts, for digests."""
    return [[text.name, ledger.sha256(text.path)] for text in texts]
