"""Bounds of an integer in, the GBNF expression of all integers between them out."""


def integers_between(low: int | None, high: int | None) -> str:
    """Return the expression of the integers from low to high, both included; None is no bound.

    Numbers without a bound have at most 16 digits, as llama.cpp's do.
    """
    choices: list[str] = []
    if low is None or low < 0:
        nearest = 1 if high is None or high >= 0 else -high
        furthest = 10**16 - 1 if low is None else -low
        choices += [f'"-" ({each})' for each in [_digits(nearest, max(nearest, furthest))]]
    if high is None or high >= 0:
        first = max(low or 0, 0)
        last = max(first, 10**16 - 1) if high is None else high
        choices.append(_digits(first, last))
    return f"({' | '.join(choices)})"


def _digits(first: int, last: int) -> str:
    """Return the expression of 0 <= first <= n <= last."""
    choices: list[str] = []
    while first <= last:
        end = min(last, 10 ** len(str(first)) - 1)
        choices.append(_same_length(str(first), str(end)))
        first = end + 1
    return " | ".join(choices)


def _same_length(low: str, high: str) -> str:
    """Return the expression of numbers between two of the same length."""
    if not low:
        return '""'
    if low == high:
        return f'"{low}"'
    rest = len(low) - 1
    if set(low[1:]) <= {"0"} and set(high[1:]) <= {"9"}:
        return f"[{low[0]}-{high[0]}]" + (f" [0-9]{{{rest}}}" if rest else "")
    if low[0] == high[0]:
        return f'"{low[0]}" ({_same_length(low[1:], high[1:])})'
    choices = [f'"{low[0]}" ({_same_length(low[1:], "9" * rest)})']
    if int(high[0]) - int(low[0]) > 1:
        choices.append(f"[{int(low[0]) + 1}-{int(high[0]) - 1}] [0-9]{{{rest}}}")
    choices.append(f'"{high[0]}" ({_same_length("0" * rest, high[1:])})')
    return " | ".join(choices)
