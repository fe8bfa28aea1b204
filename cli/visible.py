"""Text from files and models on its way to a terminal: what would steer it is shown, not obeyed."""

# The control pictures of Unicode for C0 (␛ is ESC) and DEL; C1 has none. A terminal's window title, colours, cursor and
# clipboard are steered by these.
_C0 = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"}
_C1 = {code: f"\\x{code:02x}" for code in range(0x80, 0xA0)}
# Marks that turn the direction of text, and line separators: with them a name can read as another.
_TURNS = (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029)

SHOWN = {**_C0, 0x7F: "␡", **_C1}
ESCAPED = {**SHOWN, **{code: f"\\u{code:04x}" for code in _TURNS}}
JSON = {code: f"\\u{code:04x}" for code in (0x7F, *range(0x80, 0xA0), *_TURNS)}
# An answer may be in Arabic or Hebrew; the carriage return of a line's end is nothing to show.
ANSWER = {**SHOWN, ord("\r"): None}


def visible(text: str) -> str:
    """Return a message or a report with its control characters made visible; line breaks and tabs stay."""
    return text.translate(ESCAPED)


def visible_answer(text: str) -> str:
    """Return a piece of an answer for a terminal; the direction of its text is its own affair."""
    return text.translate(ANSWER)


def visible_json(text: str) -> str:
    """Return JSON that says the same, with what a terminal may obey written as escapes."""
    return text.translate(JSON)
