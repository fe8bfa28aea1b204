"""Text files and piped text as editors and shells write them: a byte order mark and UTF-16 are understood."""

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import EngineError

UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
MARK = "\ufeff"


def read_text_file(path: str | Path) -> str:
    """Return a text file's text, line ends as \\n, without a byte order mark; what is no text is shown as such.

    UTF-8, or UTF-16 where the file begins with its mark, as PowerShell writes what is redirected.
    """
    data = Path(path).read_bytes()
    text = data.decode("utf-16" if data.startswith(UTF16) else "utf-8", "replace")
    return plain_text(text)


def read_message_file(path: str | Path) -> str:
    """Return the text of a file that somebody means a model to read. Raises EngineError for what is no such text."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise EngineError(f"{path}: {error.strerror}") from None
    return strict_text(data, str(path))


def strict_text(data: bytes, where: str) -> str:
    """Return bytes as text, as `plain_text`; raises EngineError for another encoding than UTF-8 and marked UTF-16."""
    try:
        return plain_text(data.decode("utf-16" if data.startswith(UTF16) else "utf-8"))
    except UnicodeDecodeError as error:
        byte = f"byte {data[error.start]:#04x} at {error.start}" if error.start < len(data) else "cut off"
        raise EngineError(f"{where}: no UTF-8 text ({byte}); save it as UTF-8, or convert it with iconv") from None


def lines_of(stream: Any, where: str) -> Iterator[str]:
    """Yield the lines of a text stream as they come, without their ends. Raises EngineError as `strict_text`.

    The bytes beneath it are read, whatever encoding the locale gave it; a stream without bytes is taken as it is.
    """
    data = getattr(stream, "buffer", None)
    if data is None:
        yield from (plain_text(line).rstrip("\n") for line in stream)
        return
    first = data.readline()
    if first.startswith(UTF16):
        yield from strict_text(first + data.read(), where).splitlines()
        return
    while first:
        yield strict_text(first, where).rstrip("\r\n")
        first = data.readline()


def whole_text(stream: Any, where: str) -> str:
    """Return all text of a stream. Raises EngineError as `strict_text`."""
    data = getattr(stream, "buffer", None)
    return plain_text(stream.read()) if data is None else strict_text(data.read(), where)


def plain_text(text: str) -> str:
    """Return a text with line ends as \\n, without the byte order mark that it may begin with."""
    return text.removeprefix(MARK).replace("\r\n", "\n")
