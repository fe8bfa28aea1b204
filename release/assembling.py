"""What was made, measured and computed becomes a manifest, with the small files that it lists: recipe, Modelfiles."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..jobs.sources import CATALOGUE_FILE
from .card import JUDGEMENTS
from .chat_template import template_of
from .ledger import Ledger
from .making import IMATRIX, RECIPE, Made
from .manifest import (
    Calibration,
    HashedFile,
    Manifest,
    ModelFacts,
    Options,
    OtherFile,
    RecipeFacts,
    Reference,
    ReleasedFile,
    RoutesFacts,
    Speed,
)
from .measuring import Measured, evaluations_of, fits_of, memory_of, speed_machine
from .model_facts import model_facts
from .ollama import Ollama, ollama_files
from .programs import versions
from .request import Request, Text
from .sources import Found, expert_facts, shown


@dataclass(frozen=True)
class Pieces:
    """All that was made, measured and computed, to be put together."""

    request: Request
    folder: Path
    ledger: Ledger
    found: Found
    files: Sequence[Made]
    others: Sequence[Made]
    reference: Made | None
    measured: Measured | None
    routes: RoutesFacts | None

    def texts(
        self, findings: Sequence[str], gates: Path | None, importance: Path | None, notes: Mapping[str, Any]
    ) -> "Texts":
        """Return the manifest without the files that are written from it, and the small files that it lists."""
        request, recipe = self.request, self.found.recipe
        facts, ollama = self.facts()
        small = dict(ollama.files())
        if recipe is not None:
            small[RECIPE] = recipe.source.strip() + "\n"
        if (catalogue := self.catalogue_text()) is not None:
            small[CATALOGUE_FILE] = catalogue
        released = tuple(self.released(made, ollama, small) for made in self.files)
        manifest = Manifest(
            model=facts,
            programs=versions(),
            source=self.found.facts,
            options=Options(
                request.types,
                request.rounding,
                request.split_max_size,
                request.tensor_types,
                request.pre_tokenizer,
                self.catalogued(),
            ),
            files=released,
            recipe=self.recipe_facts(small, findings, gates),
            calibration=self.calibration(importance, notes),
            reference=self.reference_facts(),
            against=tuple(self.against(made) for made in self.others),
            machines=tuple(replace(machine) for machine in request.machines),
            routes=self.routes,
            evaluations=evaluations_of(
                request.evaluations, [*self.files, *([self.reference] if self.reference else [])]
            ),
            judgements=JUDGEMENTS if self.measured else (),
            speed=self.speed(),
        )
        copied = [path for path in (gates, importance) if path and path.parent == self.folder]
        imatrix = self.folder / IMATRIX
        if imatrix not in copied and importance and self.ledger.owns(imatrix) and imatrix.is_file():
            copied.append(imatrix)
        return Texts(manifest, small, tuple(self.hashed(path) for path in copied))

    def facts(self) -> tuple[ModelFacts, Ollama]:
        """Return what the model is and what Ollama needs, from the header of the first file."""
        from ..formats.gguf_file import read_gguf

        path = self.files[0].path
        facts = model_facts(path, self.found.source.name, self.found.source.entry, self.request.publisher)
        metadata = read_gguf(path).metadata
        return facts, ollama_files(template_of(metadata, path), metadata)

    def hashed(self, path: Path) -> HashedFile:
        """Return a file of the folder, or any other by its name alone, with its hash."""
        folder = self.folder
        name = path.relative_to(folder).as_posix() if folder in path.parents else path.name
        return HashedFile(name, path.stat().st_size, self.ledger.sha256(path))

    def catalogued(self) -> dict[str, Any]:
        """Return what the catalogue says that goes into the files."""
        entry = self.found.source.entry
        if entry is None:
            return {}
        keys = ("title", "description", "license", "language", "tags", "datasets", "size_label")
        said = {key: getattr(entry, key) for key in keys}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in said.items() if value}

    def catalogue_text(self) -> str | None:
        """Return a catalogue with this model alone, from which its names and words are taken again; None for a path."""
        said, source = self.catalogued(), self.found.source
        if not said or (source.hub is None and self.found.recipe is None):
            return None
        place = {"hub": source.hub} if source.hub else {"path": RECIPE}
        lines = [f"[models.{json.dumps(source.name)}]"]
        lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in {**said, **place}.items()]
        return "\n".join(lines) + "\n"

    def released(self, made: Made, ollama: Ollama, small: dict[str, str]) -> ReleasedFile:
        """Return one type with all that is known of it."""
        request = self.request
        files = tuple(self.hashed(path) for path in made.paths)
        modelfile = None
        if len(files) == 1:
            modelfile = f"Modelfile-{made.type}"
            small[modelfile] = ollama.modelfile(made.path.name)
        return ReleasedFile(
            made.path.name,
            made.type,
            made.n_bytes,
            made.bits_per_weight,
            files,
            made.mix,
            self.measured.quality.get(made.path) if self.measured else None,
            memory_of(made.path, request.contexts),
            fits_of(made.path, request.machines),
            made.fallen_back,
            modelfile,
        )

    def against(self, made: Made) -> OtherFile:
        """Return another publisher's file."""
        ours = {one.path.name for one in self.files}
        name = made.path.name
        return OtherFile(
            f"{made.path.resolve().parent.name}/{name}" if name in ours else name,
            made.n_bytes,
            made.bits_per_weight,
            tuple(HashedFile(path.name, path.stat().st_size, self.ledger.sha256(path)) for path in made.paths),
            made.type,
            self.measured.quality.get(made.path) if self.measured else None,
        )

    def recipe_facts(self, small: Mapping[str, str], findings: Sequence[str], gates: Path | None) -> RecipeFacts | None:
        """Return the recipe in words."""
        recipe = self.found.recipe
        if recipe is None:
            return None
        repos = self.found.repos or {}
        return RecipeFacts(
            file=hashed_text(RECIPE, small[RECIPE]),
            base_model=shown(str(recipe.base_model)),
            base_repo=repos.get(recipe.base_model),
            gate_mode=recipe.gate_mode,
            experts_per_token=recipe.experts_per_token,
            experts=tuple(expert_facts(recipe, expert, repos) for expert in recipe.experts),
            shared_experts=tuple(expert_facts(recipe, expert, repos) for expert in recipe.shared_experts),
            dtype=recipe.dtype,
            gates=self.hashed(gates) if gates else None,
            findings=tuple(findings),
            prompts_by=self.found.source.entry.prompts_by if self.found.source.entry else None,
        )

    def calibration(self, importance: Path | None, notes: Mapping[str, Any]) -> Calibration | None:
        """Return what types were rounded by."""
        request = self.request
        if importance is None:
            return None
        given = bool(request.imatrix or request.moments)
        calibrated = request.rounding == "calibrated"
        imatrix = self.folder / IMATRIX
        return Calibration(
            texts=tuple(hashed_file(text, self.ledger) for text in request.calibration),
            shipped_text=not request.calibration and not given,
            imatrix=self.hashed(imatrix) if imatrix.is_file() and self.ledger.owns(imatrix) else None,
            moments=self.hashed(importance) if calibrated else None,
            model=notes.get("model"),
            n_ctx=notes.get("n_ctx"),
            n_chunk=notes.get("n_chunk"),
            least_tokens=notes.get("least"),
        )

    def reference_facts(self) -> Reference | None:
        """Return what all was compared with."""
        if self.measured is None or self.reference is None:
            return None
        base, request = self.measured.base, self.request
        small = self.reference.type == "Q8_0" and request.reference == "auto"
        return Reference(
            type=self.reference.type,
            file=HashedFile(self.reference.path.name, self.reference.n_bytes, self.ledger.sha256(self.reference.path)),
            ppl=base["ppl"],
            n_ctx=request.n_ctx,
            n_chunk=base["n_chunk"],
            n_token=base["n_token"],
            noise_floor=base["noise_floor"],
            why="The 16-bit model does not fit into the memory of the machine that measured." if small else None,
            texts=tuple(hashed_file(text, self.ledger) for text in request.texts),
        )

    def speed(self) -> Speed | None:
        """Return what a stopwatch found."""
        if self.measured is None or not self.measured.speed:
            return None
        machine, n_threads = speed_machine(self.request.load)
        found = {made.path.name: self.measured.speed[made.path] for made in self.files}
        return Speed(machine, n_threads, found)


@dataclass(frozen=True)
class Texts:
    """A manifest, the small files that it lists and their contents, and files that are there already."""

    manifest: Manifest
    small: Mapping[str, str]
    there: tuple[HashedFile, ...]


def hashed_text(name: str, text: str) -> HashedFile:
    """Return a text as the file that it will be."""
    from hashlib import sha256

    data = text.encode()
    return HashedFile(name, len(data), sha256(data).hexdigest())


def hashed_file(text: Text, ledger: Ledger) -> HashedFile:
    """Return a text that was read, by the name it was given."""
    return HashedFile(text.name, text.path.stat().st_size, ledger.sha256(text.path))
