"""Text files and piped text as editors and shells write them: a byte order mark and UTF-16 are understood."""

import codecs
from pathlib import Path

UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
MARK = "\ufeff"


def read_text_file(path: str | Path) -> str:
    """Return a text file's text, line ends as \\n, without a byte order mark; what is no text is shown as such.

    UTF-8, or UTF-16 where the file begins with its mark, as PowerShell writes what is redirected.
    """
    data = Path(path).read_bytes()
    text = data.decode("utf-16" if data.startswith(UTF16) else "utf-8", "replace")
    return plain_text(text)


def plain_text(text: str) -> str:
    """Return a text with line ends as \\n, without the byte order mark that it may begin with."""
    return text.removeprefix(MARK).replace("\r\n", "\n")
