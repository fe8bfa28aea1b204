"""Which language a chat template is written in, told from its text."""

import re

# Actions of Go's text/template, which Ollama's templates are written in: {{ .System }}, {{ range .Messages }}
GO_ACTION = re.compile(
    r"\{\{-?\s*(?:(?:if|else if|range|with|and|or|not|eq|ne|len|slice|json|template)\b[^{}]*?)?[\s($]*\.[A-Z]\w*"
)


def is_go_template(source: str) -> bool:
    """Tell whether this is a Go template, such as Ollama's, and no Jinja."""
    return "{%" not in source and GO_ACTION.search(source) is not None
