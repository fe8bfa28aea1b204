"""A text that comes in pieces, broken between words where a terminal's line ends."""

import shutil
import unicodedata


def width_of(text: str) -> int:
    """Return how many columns a text takes."""
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


class WordWrap:
    """Holds a word back until it is whole, and puts it on the next line when it does not fit on this one."""

    def __init__(self, columns: int | None = None) -> None:
        """Wrap at so many columns; by default at what the terminal has at that moment, since it may be resized."""
        self._columns = columns
        self._column = 0
        self._word = ""

    def push(self, text: str) -> str:
        """Take a piece and return what can be shown."""
        shown = ""
        for letter in text:
            if letter in " \n\t":
                shown += self._place() + self._space(letter)
            else:
                self._word += letter
                if width_of(self._word) >= self.columns:
                    shown += self._place()
        return shown

    def flush(self) -> str:
        """Return what is held back."""
        return self._place()

    @property
    def columns(self) -> int:
        """The width of a line."""
        return max(self._columns or shutil.get_terminal_size().columns, 1)

    def _place(self) -> str:
        word, self._word = self._word, ""
        width = width_of(word)
        broken = "\n" if self._column and self._column + width > self.columns else ""
        self._column = (0 if broken else self._column) + width
        self._column %= self.columns + 1
        return broken + word

    def _space(self, letter: str) -> str:
        if letter == "\n":
            self._column = 0
            return letter
        width = 1 if letter == " " else 8 - self._column % 8
        if self._column + width > self.columns:
            self._column = 0
            return "\n"
        self._column += width
        return letter
