"""Tests that a missing program keeps from running are left out, and that is said in one line."""

import shutil

TMUX = "test_chat_in_tmux.py"
collect_ignore = [] if shutil.which("tmux") else [TMUX]


def pytest_terminal_summary(terminalreporter) -> None:
    """Say what was left out."""
    if collect_ignore:
        terminalreporter.write_line(f"left out: tests/cli/{TMUX}, which needs tmux (apt-get install tmux)")
