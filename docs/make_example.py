"""Writes docs/example-card.md and its picture from a release folder.

    python docs/make_example.py FOLDER [--picture /usr/bin/chromium]

The manifest, the recipe and the plots are kept in docs/example-release/, from which a test renders the card again. The
picture for the README is the top of the card as a browser shows it; PROGRAM is a Chromium.
"""

import argparse
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

DOCS = Path(__file__).parent
KEPT = ("manifest.json", "recipe.yml", "plots")
STYLE = """
body { font: 16px/1.5 -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; color: #1f2328;
  max-width: 980px; margin: 0 auto; padding: 28px 36px; background: white }
h1, h2 { border-bottom: 1px solid #d1d9e0; padding-bottom: .3em; margin: 24px 0 14px } h1 { font-size: 30px }
h2 { font-size: 23px }
table { border-collapse: collapse; margin: 12px 0; font-size: 14px; display: block; overflow: auto }
th, td { border: 1px solid #d1d9e0; padding: 6px 11px } tr:nth-child(2n) { background: #f6f8fa } img { max-width: 100% }
code { background: #eff1f3; border-radius: 6px; padding: .15em .35em; font-size: 85% }
pre { background: #f6f8fa; border-radius: 6px; padding: 14px; overflow: auto } pre code { background: none; padding: 0 }
a { color: #0969da; text-decoration: none }
"""


def as_example(card: str) -> str:
    """Return a card as a page of the documentation: links to files that are not kept here are only their names."""

    def kept(match: re.Match[str]) -> str:
        mark, text, target = match.groups()
        if re.match(r"[a-z]+:", target):
            return match[0]
        return f"{mark}[{text}](example-release/{target})" if target.split("/")[0] in KEPT else text

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", kept, card)


def html(card: str) -> str:
    """Return a card as a page, looking about as it does on the Hub."""
    from markdown_it import MarkdownIt

    body = card.partition("\n---\n")[2]
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(body)
    return f'<!doctype html><meta charset="utf-8"><style>{STYLE}</style>{rendered}'


def photograph(card: str, folder: Path, program: str, picture: Path, height: int) -> None:
    """Let a browser draw the top of a card, whose pictures lie in `folder`."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        page = Path(place) / "card.html"
        page.write_text(html(card).replace('src="plots/', 'src="../plots/'), encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size=1060,{height}"]
        subprocess.run([program, *flags, f"--screenshot={picture}", page.as_uri()], check=True, capture_output=True)


def main() -> None:
    """Write the example anew."""
    from moe_gguf.release.card import card_text
    from moe_gguf.release.manifest import read_manifest

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--picture", metavar="PROGRAM")
    parser.add_argument("--height", type=int, default=1200)
    options = parser.parse_args()
    kept = DOCS / "example-release"
    if options.folder.resolve() != kept.resolve():
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir()
        for name in KEPT:
            source = options.folder / name
            shutil.copytree(source, kept / name) if source.is_dir() else shutil.copy(source, kept / name)
    card = card_text(read_manifest(kept), (kept / "recipe.yml").read_text(encoding="utf-8"))
    (DOCS / "example-card.md").write_text(as_example(card), encoding="utf-8")
    if options.picture:
        photograph(card, kept.resolve(), options.picture, (DOCS / "example-card.png").resolve(), options.height)


if __name__ == "__main__":
    main()
