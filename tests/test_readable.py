"""Code that is read in one sitting: how long files and functions may be."""

import ast
from pathlib import Path

import pytest

from .test_imports import ROOT, SOURCES

LONGEST_FILE, LONGEST_FUNCTION = 300, 60


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_and_functions_are_short_or_say_why(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    if text.count("\n") > LONGEST_FILE:
        assert "Long because" in (ast.get_docstring(tree) or ""), "say why in the docstring: Long because ..."
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.body[0].lineno <= LONGEST_FUNCTION, node.name
