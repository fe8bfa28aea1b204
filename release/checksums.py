"""SHA256SUMS, in the format of sha256sum: files come in, hashes go out; a folder is held against what it lists.

    7d793037a0760186574b0282f2f435e7  SmolBruce-4x135M-Q4_K_M.gguf      (64 digits, two spaces, the name)

`sha256sum -c SHA256SUMS` reads it too.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..formats.errors import ReleaseError

SUMS = "SHA256SUMS"
LINE = re.compile(r"(\\?)([0-9a-f]{64}) [ *](.+)")
CHUNK = 8 * 2**20

Advance = Callable[[int], object]


@dataclass(frozen=True)
class Mismatch:
    """What is wrong with one file: `kind` is "missing" or "changed"."""

    name: str
    kind: str
    expected: str
    found: str | None = None

    def __str__(self) -> str:
        if self.kind == "missing":
            return f"{self.name}: is listed, and not there"
        return f"{self.name}: SHA-256 is {str(self.found)[:16]}..., not {self.expected[:16]}... as listed"


def sha256_of(path: Path, advance: Advance = lambda n_bytes: None) -> str:
    """Return the SHA-256 of a file's bytes; `advance` is told how many were read. Raises ReleaseError."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(CHUNK))
    try:
        with path.open("rb", buffering=0) as file:
            while n_read := file.readinto(buffer):
                digest.update(buffer[:n_read])
                advance(n_read)
    except OSError as error:
        raise ReleaseError(f"{path}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def checksums_text(sums: Mapping[str, str]) -> str:
    """Return the lines for names and their hashes, sorted by name; odd characters escaped as sha256sum does."""

    def line(name: str, digest: str) -> str:
        escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
        return f"{'' if escaped == name else chr(92)}{digest}  {escaped}\n"

    return "".join(line(name, sums[name]) for name in sorted(sums))


def write_checksums(folder: Path, sums: Mapping[str, str]) -> Path:
    """Write SHA256SUMS into a folder. Returns its path."""
    path = folder / SUMS
    partial = path.with_name(path.name + ".partial")
    partial.write_text(checksums_text(sums), encoding="utf-8", newline="\n")
    partial.replace(path)
    return path


def read_checksums(path: Path) -> dict[str, str]:
    """Read the names and hashes of a SHA256SUMS, or of a folder's. Raises ReleaseError for what is none.

    A name that leads out of the folder is refused.
    """
    path = path / SUMS if path.is_dir() else path
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ReleaseError(f"{path}: no such file; a release folder has one (moe-gguf release writes it)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ReleaseError(f"{path}: cannot be read: {error}") from None
    return dict(_entries(path, text))


def _entries(path: Path, text: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        match = LINE.fullmatch(line.removesuffix("\r"))
        if match is None:
            raise ReleaseError(f"{path}, line {number}: not a line of sha256sum (64 digits, two spaces, a name)")
        escaped, digest, name = match.groups()
        if escaped:
            name = re.sub(r"\\([nr\\])", lambda found: {"n": "\n", "r": "\r", "\\": "\\"}[found[1]], name)
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts:
            raise ReleaseError(f"{path}, line {number}: {name} leads out of the folder")
        yield name, digest


def check_checksums(
    folder: Path, sums: Mapping[str, str], names: Sequence[str] | None = None, advance: Advance = lambda n_bytes: None
) -> list[Mismatch]:
    """Return what of `sums` does not hold in a folder; `names` are the files to look at, all by default."""
    found = []
    for name in sums if names is None else names:
        path = folder / name
        if not path.is_file():
            found.append(Mismatch(name, "missing", sums[name]))
        elif (digest := sha256_of(path, advance)) != sums[name]:
            found.append(Mismatch(name, "changed", sums[name], digest))
    return found
