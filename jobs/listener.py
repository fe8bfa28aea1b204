"""What a job tells while it runs: messages and progress go out to whoever listens, and nothing comes back."""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Bar(Protocol):
    """A progress bar."""

    def update(self, n: float = 1, /) -> object:
        """Advance by n units."""
        ...


class Listener(Protocol):
    """Is told what a person would want to see; it never decides anything."""

    def say(self, message: str) -> None:
        """Take a message that everybody should see."""
        ...

    def detail(self, message: str) -> None:
        """Take a message for those who asked for details."""
        ...

    def warn(self, message: str) -> None:
        """Take a warning, which is never silenced."""
        ...

    def bar(self, total: int, description: str, unit: str = "B", delay: float = 0) -> AbstractContextManager[Bar]:
        """Return a bar over `total` units (bytes unless named), to be shown after `delay` seconds."""
        ...


class Silent:
    """A listener that drops all it is told; subclass it to hear some of it."""

    def say(self, message: str) -> None:
        """Drop a message."""

    def detail(self, message: str) -> None:
        """Drop a detail."""

    def warn(self, message: str) -> None:
        """Drop a warning."""

    def bar(self, total: int, description: str, unit: str = "B", delay: float = 0) -> AbstractContextManager[Bar]:
        """Return a bar that nobody sees."""
        return nullcontext(_Unseen())


class _Unseen:
    def update(self, n: float = 1, /) -> object:
        """Advance nothing."""
        return None


SILENT = Silent()
