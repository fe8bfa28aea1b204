"""Bytes of tokens in, text that may be shown out: whole characters only, and nothing of a stop string."""

import codecs
from collections.abc import Sequence


class TextStream:
    """Holds back what may still become a character or a stop string."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        """Watch for stop strings; they may span tokens."""
        self.stops = tuple(stop for stop in stops if stop)
        self.stopped: str | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def push(self, data: bytes) -> str:
        """Take a token's bytes and return the text that is certain now; `stopped` names the stop string found."""
        return self._release(self._decoder.decode(data), final=False)

    def flush(self) -> str:
        """Return what is held back when no more tokens come; a broken character becomes U+FFFD."""
        return self._release(self._decoder.decode(b"", final=True), final=True)

    def _release(self, text: str, final: bool) -> str:
        if self.stopped is not None:
            return ""
        if not self.stops:
            return text
        self._held += text
        found = [(self._held.find(stop), -len(stop), stop) for stop in self.stops if stop in self._held]
        if found:
            at, _, self.stopped = min(found)
            ready, self._held = self._held[:at], ""
            return ready
        keep = 0 if final else max((overlap(self._held, stop) for stop in self.stops), default=0)
        ready, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return ready


def overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
