"""Texts of the four kinds that the experts in merge/experts were trained for, from a Debian machine's packages.

    apt install bible-kjv fortunes-de postgresql-client man-db
    python -m benchmarks.texts FOLDER

writes python.txt (Python's standard library), scripture.txt (King James Bible), german.txt (sayings) and manual.txt
(PostgreSQL's manual pages). Each is a sequence of short passages drawn at random with a fixed seed, none of them twice,
so that what is held out at a text's end is of the same kind as its beginning and was not seen.
"""

import argparse
import os
import random
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

N_CHARACTERS = 80_000
FORTUNES = Path("/usr/share/games/fortunes/de/zitate.u8")
Item = TypeVar("Item", int, str, Path)
PAGES = "/usr/share/postgresql/*/man/man7/*.7.gz"


def output_of(*command: str) -> str:
    """Run a program and return what it prints."""
    if shutil.which(command[0]) is None:
        raise SystemExit(f"{command[0]} is not installed; see python -m benchmarks.texts --help")
    environment = {**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8"}
    return subprocess.run(command, capture_output=True, env=environment, check=True).stdout.decode("utf-8", "replace")


def python(draw: random.Random) -> Iterator[str]:
    """Yield 800 characters of each module."""
    for path in shuffled(Path(sysconfig.get_path("stdlib")).glob("*.py"), draw):
        text = path.read_text(encoding="utf-8")
        start = text.find("\n", draw.randrange(max(1, len(text) - 800))) + 1
        yield text[start : start + 800]


def scripture(draw: random.Random) -> Iterator[str]:
    """Yield four verses that follow each other, without their numbers."""
    lines = output_of("bible", "-f", "Gen1:1-Rev22:21").splitlines()
    verses = [re.sub(r"^\S+ ?\S*:\d+ +", "", line) for line in lines if line.strip()]
    for start in shuffled(range(0, len(verses), 4), draw):
        yield "\n".join(verses[start : start + 4])


def german(draw: random.Random) -> Iterator[str]:
    """Yield sayings with their authors."""
    if not FORTUNES.is_file():
        raise SystemExit("fortunes-de is not installed; see python -m benchmarks.texts --help")
    yield from shuffled(FORTUNES.read_text(encoding="utf-8").split("\n%\n"), draw)


def manual(draw: random.Random) -> Iterator[str]:
    """Yield the first 2,500 characters of each page, as a terminal shows it, runs of spaces as tabs."""
    pages = list(Path("/").glob(PAGES.lstrip("/")))
    if not pages:
        raise SystemExit("postgresql-client is not installed; see python -m benchmarks.texts --help")
    for page in shuffled(pages, draw):
        shown = subprocess.run(["col", "-b"], input=output_of("man", "-l", str(page)), capture_output=True, text=True)
        yield shown.stdout[:2500]


KINDS = {"python": python, "scripture": scripture, "german": german, "manual": manual}


def other_kinds() -> list[str]:
    """Return texts of kinds that no expert was trained for, as far as they are there: C, licences, Perl, man pages.

    The pages are French and Spanish, of the packages manpages-fr and manpages-es.
    """
    headers = [path.read_text(errors="replace")[:4000] for path in sorted(Path("/usr/include").glob("*.h"))[:20]]
    licences = sorted(Path("/usr/share/common-licenses").glob("*"))[:8]
    terms = [path.read_text(errors="replace")[:12000] for path in licences]
    modules = [path.read_text(errors="replace")[:4000] for path in sorted(Path("/usr/share/perl").glob("**/*.pm"))[:20]]
    parts = ["".join(each) for each in (headers, terms, modules)]
    for language in ("fr", "es"):
        pages = sorted(Path(f"/usr/share/man/{language}/man1").glob("*.gz"))[:12]
        shown = [
            subprocess.run(["col", "-b"], input=output_of("man", "-l", str(page)), capture_output=True, text=True)
            for page in pages
        ]
        parts.append("".join(each.stdout[:5000] for each in shown))
    return [part for part in parts if part]


def shuffled(items: Iterable[Item], draw: random.Random) -> list[Item]:
    """Return items in random order."""
    ordered = sorted(items)
    draw.shuffle(ordered)
    return ordered


def write_texts(folder: Path) -> None:
    """Write a text of each kind."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, kind in KINDS.items():
        text = ""
        for passage in kind(random.Random(0)):
            text += passage.rstrip("\n") + "\n"
            if len(text) > N_CHARACTERS:
                break
        path = folder / f"{name}.txt"
        path.write_text(text, encoding="utf-8")
        print(f"{path}: {len(text):,} characters")


def main() -> None:
    """Write the texts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    write_texts(parser.parse_args().folder)


if __name__ == "__main__":
    main()
