"""A program in a terminal of tmux: keys in, the screen out."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

PATIENCE = 30.0


class Screen:
    """A terminal that a shell runs in. What is waited for must come soon."""

    def __init__(self, socket: str) -> None:
        self._socket = socket

    def tmux(self, *arguments: str) -> str:
        """Run a command of tmux and return what it prints."""
        return subprocess.run(
            ["tmux", "-S", self._socket, *arguments], check=True, capture_output=True, text=True
        ).stdout

    def press(self, *keys: str) -> None:
        """Press keys by tmux's names: Enter, C-c, C-z, M-Enter."""
        self.tmux("send-keys", *keys)

    def type(self, text: str) -> None:
        """Type a text, letter by letter."""
        self.tmux("send-keys", "-l", text)

    def paste(self, text: str) -> None:
        """Paste a text as a terminal does, marked as pasted."""
        self.tmux("set-buffer", text)
        self.tmux("paste-buffer", "-p")

    def resize(self, columns: int, rows: int) -> None:
        """Change the size of the terminal."""
        self.tmux("resize-window", "-x", str(columns), "-y", str(rows))

    def shown(self) -> str:
        """Return all lines that were shown, those that scrolled away too."""
        return self.tmux("capture-pane", "-p", "-J", "-S", "-")

    def wait_for(self, text: str, times: int = 1) -> str:
        """Wait until a text is shown so many times; return the screen."""
        patience = time.monotonic() + PATIENCE
        while (screen := self.shown()).count(text) < times:
            assert time.monotonic() < patience, f"{text!r} does not come:\n{screen}"
            time.sleep(0.05)
        return screen


@contextmanager
def terminal(folder: Path, columns: int = 80, rows: int = 40) -> Iterator[Screen]:
    """Open a terminal with a plain shell, whose home is `folder`, and close it in the end."""
    size = ("-x", str(columns), "-y", str(rows))
    shell = f"env HOME={folder} XDG_CONFIG_HOME={folder} PS1='$ ' HISTFILE= bash --norc --noprofile -i"
    with TemporaryDirectory(prefix="tmux-") as short:  # a socket's path has room for about 100 letters
        screen = Screen(f"{short}/s")
        screen.tmux("-f", "/dev/null", "new-session", "-d", *size, shell)
        try:
            yield screen
        finally:
            screen.tmux("kill-server")
