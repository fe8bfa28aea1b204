"""Where the files that are checked lie: a file, a folder, a repository of the hub; with what it says of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from ..formats.errors import MoeGgufError, ReleaseError
from ..formats.gguf_file import SPLIT_NAME
from ..jobs.listener import Listener
from ..jobs.sources import resolve_gguf
from .checksums import SUMS, check_checksums, read_checksums
from .hub import is_repo
from .hub_files import HubRepo
from .manifest import MANIFEST, Manifest, read_manifest
from .problems import FileReport, Kind


@dataclass
class Place:
    """Where files lie: a folder with what it says of itself; `repo` where it is a stand-in for one on the hub."""

    folder: Path
    names: tuple[str, ...]
    shown: Mapping[str, str] = field(default_factory=dict)
    sums: Mapping[str, str] = field(default_factory=dict)
    repo: HubRepo | None = None
    reports: dict[str, FileReport] = field(default_factory=dict)
    manifest: Manifest | None = None

    def report(self, name: str) -> FileReport:
        """Return the report of a file, begun when it is first asked for."""
        return self.reports.setdefault(name, FileReport(self.shown.get(name, name)))


def place_of(
    target: str | Path | None, catalogue: Path | None, revision: str | None, scratch: Path, listener: Listener
) -> Place:
    """Tell what is to be checked: a folder's files, one file, or those of OWNER/NAME on the hub, begun in `scratch`.

    Raises MoeGgufError for what is none of them.
    """
    target = str(target) if target is not None else None
    if target is not None and not Path(target).exists() and is_repo(target):
        return _on_hub(HubRepo(target, revision), scratch, listener)
    if target is not None and Path(target).is_dir():
        return _folder(Path(target))
    path = resolve_gguf(target, catalogue)
    sums = read_checksums(path.parent) if (path.parent / SUMS).is_file() else {}
    return Place(
        path.parent, (path.name,), {path.name: str(path)}, {path.name: sums[path.name]} if path.name in sums else {}
    )


def _folder(folder: Path) -> Place:
    ggufs = [path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf") if path.is_file()]
    place = Place(folder, (), sums=read_checksums(folder) if (folder / SUMS).is_file() else {})
    place.names = tuple(sorted(name for name in {*ggufs, *place.sums} if not _is_later_shard(name)))
    if place.sums:
        for name in sorted(set(ggufs) - set(place.sums)):
            place.report(name).add(Kind.CHECKSUM, f"{name}: not listed in {SUMS}")
    place.manifest = _manifest(place)
    return place


def _on_hub(repo: HubRepo, scratch: Path, listener: Listener) -> Place:
    """Fetch a repository's checksums, manifest, and the headers of its GGUF files."""
    place = Place(scratch, (), repo=repo)
    for name in (SUMS, MANIFEST):
        if name in repo.files:
            (scratch / name).write_bytes(repo.read(name, 0, repo.files[name].n_bytes))
    if SUMS in repo.files:
        place.sums = read_checksums(scratch)
    place.manifest = _manifest(place)
    ggufs = [name for name in repo.files if name.lower().endswith(".gguf")]
    with listener.bar(len(ggufs), "fetch headers", " files", delay=2) as bar:
        for name in ggufs:
            try:
                repo.stand_in(name, scratch)
            except MoeGgufError as error:
                place.report(name).add(kind_of(error), without_scratch(str(error), scratch))
            bar.update(1)
    place.names = tuple(sorted(name for name in {*ggufs, *place.sums} if not _is_later_shard(name)))
    return place


def _manifest(place: Place) -> Manifest | None:
    """Read the manifest of a folder, and hold it against the checksums."""
    if not (place.folder / MANIFEST).is_file():
        return None
    try:
        manifest = read_manifest(place.folder)
    except ReleaseError as error:
        place.report(MANIFEST).add(Kind.MANIFEST, str(error))
        return None
    for listed in manifest.listed:
        stated = place.sums.get(listed.name)
        if stated is not None and stated != listed.sha256:
            message = f"{listed.name}: {MANIFEST} has SHA-256 {listed.sha256[:16]}..., {SUMS} {stated[:16]}..."
            place.report(listed.name).add(Kind.MANIFEST, message)
        elif place.sums and stated is None:
            place.report(listed.name).add(Kind.MANIFEST, f"{listed.name}: in {MANIFEST}, and not listed in {SUMS}")
    return manifest


def check_sums(place: Place, listener: Listener) -> None:
    """Hold files against SHA256SUMS: here by hashing them, on the hub by what it states."""
    for name in place.sums:
        place.report(name)
    if place.repo is not None:
        _check_sums_on_hub(place, place.repo)
        return
    there = [place.folder / name for name in place.sums]
    total = sum(path.stat().st_size for path in there if path.is_file())
    with listener.bar(total, "checksums", delay=1) as bar:
        for mismatch in check_checksums(place.folder, place.sums, advance=bar.update):
            kind = Kind.MISSING if mismatch.kind == "missing" else Kind.CHECKSUM
            place.report(mismatch.name).add(kind, str(mismatch))


def _check_sums_on_hub(place: Place, repo: HubRepo) -> None:
    for name, expected in place.sums.items():
        if name not in repo.files:
            place.report(name).add(Kind.MISSING, f"{name}: is listed, and not there")
            continue
        stated = repo.files[name].sha256
        found = stated or sha256(repo.read(name, 0, repo.files[name].n_bytes)).hexdigest()
        if found != expected:
            message = f"{name}: SHA-256 is {found[:16]}..., not {expected[:16]}... as listed"
            place.report(name).add(Kind.CHECKSUM, message)


def _is_later_shard(name: str) -> bool:
    shard = SPLIT_NAME.match(name)
    return shard is not None and shard["number"] != "00001"


def kind_of(error: MoeGgufError) -> Kind:
    """Return the kind of problem that a file which cannot be read has."""
    return Kind.TRUNCATED if "truncated" in str(error) else Kind.STRUCTURE


def without_scratch(message: str, scratch: Path) -> str:
    """Return a message about a stand-in as one about the file on the hub."""
    return message.replace(f"{scratch}/", "")
