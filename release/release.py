"""A release, whole: a model and texts come in; a folder of files, measurements, card, checksums and statement goes out.

    doctor -> gates -> reference -> importance -> all types in one pass -> divergence -> routes -> memory -> the page

Each step is skipped when what it depends on has not changed (ledger.py), so that the same command goes on after any
interruption, and a type that is added later makes and measures that one file.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..formats.errors import Interrupted, OutputError, PlanError
from ..formats.words import count
from ..jobs.listener import SILENT, Listener
from ..writer.journal import only_run
from . import plots
from .assembling import Pieces, Texts, hashed_text
from .card import card_text
from .checksums import SUMS, checksums_text
from .ledger import Ledger, digest
from .making import RECIPE, Made, Maker, described
from .manifest import MANIFEST, HashedFile, Manifest, manifest_text, parsed, plain
from .measuring import Measurer
from .names import mistaken
from .programs import versions
from .request import ROUNDINGS, Request
from .sources import find_source
from .statement import STATEMENT, statement_text

CARD = "README.md"


@dataclass(frozen=True)
class Prepared:
    """A request that makes sense, and where it goes: the folder, and beside it what is kept between runs."""

    request: Request
    name: str
    folder: Path
    work: Path


@dataclass(frozen=True)
class Report:
    """The folder, its manifest, and the names of the files that this run has changed."""

    folder: Path
    manifest: Manifest
    changed: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return what `release --json` prints."""
        return {
            "folder": str(self.folder),
            "files": [
                {"path": str(self.folder / file.name), "type": file.type, "bytes": file.bytes}
                for file in self.manifest.files
            ],
            "manifest": str(self.folder / MANIFEST),
            "changed": list(self.changed),
        }


def prepare(request: Request) -> Prepared:
    """Check what is asked, headers apart. Raises MoeGgufError."""
    from ..jobs.sources import resolve_source
    from ..quantize.file_types import parse_file_type

    if request.rounding not in ROUNDINGS:
        raise PlanError(f"rounding {request.rounding!r} is none of {', '.join(ROUNDINGS)}")
    if not request.types:
        raise PlanError("no types to release; name at least one, as --types Q4_K_M")
    types = tuple(parse_file_type(name).name for name in request.types)
    if len(set(types)) < len(types):
        raise PlanError(f"a type is named twice: {', '.join(request.types)}")
    if request.against and not request.texts:
        raise PlanError("--against needs a held-out text to measure on: give one by -f")
    for path in (*(text.path for text in (*request.texts, *request.calibration)), *request.evaluations):
        if not path.is_file():
            raise PlanError(f"{path}: no such file")
    _check_texts(request)
    source = resolve_source(request.model, request.catalogue)
    folder = request.output or Path(f"{source.name}-GGUF")
    if folder.is_file():
        raise OutputError(f"{folder}: is a file; name a folder with -o")
    return Prepared(replace(request, types=types), source.name, folder, work_of(folder))


def _check_texts(request: Request) -> None:
    names = [text.name for text in request.texts]
    if len(set(names)) < len(names):
        raise PlanError(f"two texts have one name: {', '.join(names)}; name them as -f NAME=FILE")
    calibrated = {text.path.read_bytes(): text for text in request.calibration}
    for text in request.texts:
        if (same := calibrated.get(text.path.read_bytes())) is not None:
            raise PlanError(f"{text.path}: is {same.path}, which calibrates: measure on a text that is held out")


def work_of(folder: Path) -> Path:
    """Return where a release keeps what it needs between runs: beside its folder, so that none of it is published."""
    return folder.with_name(folder.name + ".work")


def run(prepared: Prepared, listener: Listener = SILENT) -> Report:
    """Make what is missing and write the page. Raises MoeGgufError; run again, it goes on where it stopped."""
    try:
        return _run(prepared, listener)
    except KeyboardInterrupt:
        raise Interrupted("interrupted; run the same command again to go on") from None


def _run(prepared: Prepared, listener: Listener) -> Report:
    request, folder = prepared.request, prepared.folder
    for one in (folder, prepared.work):
        one.mkdir(parents=True, exist_ok=True)
    with only_run(prepared.work / "steps.json"):
        return _release(request, prepared, Ledger(folder, prepared.work, listener), listener)


def _release(request: Request, prepared: Prepared, ledger: Ledger, listener: Listener) -> Report:
    folder = prepared.folder
    found = find_source(request, ledger)
    maker = Maker(request, found, folder, prepared.work, ledger, listener)
    findings = maker.examine()
    gates = maker.make_gates()
    measures = bool(request.texts)
    collects = request.rounding != "plain" and not (request.imatrix or request.moments)
    reference = maker.make_reference(gates) if measures or collects else None
    importance, notes = maker.make_importance(reference)
    files = maker.make_files(gates, importance, reference)
    for sentence in mistaken({made.path.name: made.type for made in files}):
        listener.warn(sentence)
    others = [described([path]) for path in request.against]
    measured = routes = None
    if measures and reference:
        measurer = Measurer(request, folder, prepared.work, ledger, reference, listener)
        measured = measurer.compare([*files, *others])
        routes = measurer.routes(found.recipe) if _has_experts(reference) else None
    pieces = Pieces(request, folder, ledger, found, files, others, reference, measured, routes)
    texts = pieces.texts(findings, gates, importance, notes)
    return _publish(prepared, ledger, texts, listener)


def _has_experts(made: Made) -> bool:
    return any("_exps." in name for name in made.mix)


def _publish(prepared: Prepared, ledger: Ledger, texts: Texts, listener: Listener) -> Report:
    """Draw, write what changed, remove what an earlier run left and this one has not. Returns the report."""
    folder, request = prepared.folder, prepared.request
    changed: list[str] = []
    others = [*texts.there, *_pictures(prepared, ledger, texts.manifest, listener, changed)]
    for name, text in texts.small.items():
        others.append(hashed_text(name, text))
        _write(folder, name, text.encode(), ledger, changed, request.force)
    manifest = replace(texts.manifest, others=tuple(sorted(others, key=lambda file: file.name)))
    manifest = parsed(Manifest, plain(manifest), MANIFEST)  # as who reads it has it: the card is of these digits
    written = {
        MANIFEST: manifest_text(manifest),
        CARD: card_text(manifest, texts.small.get(RECIPE, ""), request.publisher.card_template),
    }
    written[STATEMENT] = statement_text(manifest, [hashed_text(MANIFEST, written[MANIFEST])])
    sums = {file.name: file.sha256 for file in manifest.listed}
    sums |= {name: hashed_text(name, text).sha256 for name, text in written.items()}
    written[SUMS] = checksums_text(sums)
    for name, text in written.items():
        _write(folder, name, text.encode(), ledger, changed, request.force)
    for stale in _stale(ledger, folder, {*sums, SUMS}):
        stale.unlink()
        listener.say(f"{stale}: is no part of this release any more, and was removed")
    listener.detail(f"{prepared.work}: what the next run need not make again; it can be removed")
    if not changed:
        listener.say(f"{folder}: nothing has changed")
    else:
        listener.say(f"{folder}: {count(len(manifest.files), 'type')}, {CARD}, {MANIFEST}, {SUMS}")
    return Report(folder, manifest, tuple(changed))


def _pictures(
    prepared: Prepared, ledger: Ledger, manifest: Manifest, listener: Listener, changed: list[str]
) -> list[HashedFile]:
    """Draw the pictures whose numbers changed; a banner of the publisher's own takes the place of ours."""
    found = []
    drawers = plots.pictures(manifest)
    banner = prepared.request.publisher.banner
    if banner is not None:
        drawers[plots.BANNER] = banner.read_bytes
    elif not plots.drawable():
        if drawers:
            listener.warn("pictures need matplotlib: pip install 'moe-gguf[plot]'; the card does without")
        return []
    seen = digest([plain(manifest.files), plain(manifest.against), plain(manifest.routes), plain(manifest.reference)])
    inputs = digest([seen, manifest.model.name, ledger.sha256(banner) if banner else None, versions().get("moe-gguf")])
    for name, draw in drawers.items():
        path = prepared.folder / name
        if ledger.kept(f"picture {name}", inputs) is None:
            ledger.begin(f"picture {name}", inputs, [path], prepared.request.force)
            plots.write_picture(path, draw())
            ledger.done(f"picture {name}", inputs, True, [path])
            changed.append(name)
        found.append(HashedFile(name, path.stat().st_size, ledger.sha256(path)))
    return found


def _write(folder: Path, name: str, data: bytes, ledger: Ledger, changed: list[str], force: bool) -> None:
    """Write a small file if its content is another than what is there."""
    path, inputs = folder / name, digest(data.hex())
    if path.is_file() and path.read_bytes() == data and ledger.owns(path):
        return
    ledger.begin(f"text {name}", inputs, [path], force)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)
    ledger.done(f"text {name}", inputs, True, [path])
    changed.append(name)


def _stale(ledger: Ledger, folder: Path, names: set[str]) -> list[Path]:
    """Return files in the folder that earlier runs of this release made, and that it does not list any more."""
    made = [name for name in ledger.outputs() if not name.startswith("..") and name not in names]
    stale = [folder / name for name in made if (folder / name).is_file()]
    ledger.forget([step for step, entry in ledger.steps.items() if set(entry["outputs"]) & set(made)])
    return stale
