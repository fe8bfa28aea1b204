"""Counts in words, for messages: a number and a noun in, both out."""


def count(number: int, noun: str) -> str:
    """Return a number of things: "1 tensor", "2 tensors"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
