"""A grammar's rules in, a refusal of those that llama.cpp's walks over them would not end on, or end too late."""

from typing import NoReturn

from ..formats.errors import EngineError

LONGEST_CHAIN = 1000
MOST_BEGINNINGS = 1_000_000

# What a rule may begin with: per alternative its items, a rule's name or None for a terminal.
Alternative = list[str | None]


def check_beginnings(rules: dict[str, list[Alternative]]) -> None:
    """Refuse rules that begin with themselves, and those that llama.cpp would follow for too long or too deep.

    It walks from each rule to all that may stand at its beginning, over and over, by recursion.
    """
    beginnings = {name: beginning(rules, alternatives) for name, alternatives in rules.items()}
    paths: dict[str, tuple[int, int]] = {}  # of a rule: how many walks begin there, and how long the longest is
    for first in beginnings:
        walk: list[str] = [first]
        on_walk = {first}
        while walk:
            name = walk[-1]
            if waiting := next((each for each in beginnings[name] if each not in paths), None):
                if waiting in on_walk:
                    begins_with_itself(waiting)
                walk.append(waiting)
                on_walk.add(waiting)
                continue
            walks = 1 + sum(paths[each][0] for each in beginnings[name])
            length = 1 + max((paths[each][1] for each in beginnings[name]), default=0)
            if length > LONGEST_CHAIN or walks > MOST_BEGINNINGS:
                raise EngineError(f"the grammar is too deep: rule {name.partition('_')[0]!r} begins in too many ways")
            paths[name] = (walks, length)
            on_walk.discard(walk.pop())


def beginning(rules: dict[str, list[Alternative]], alternatives: list[Alternative]) -> list[str]:
    """Return the rules that may stand at the beginning, once for each place."""
    found: list[str] = []
    for alternative in alternatives:
        for part in alternative:
            if part is None:
                break
            found.append(part)
            if [] not in rules[part]:
                break
    return found


def check_growth(rules: dict[str, list[Alternative]]) -> None:
    """Refuse rules that begin with themselves and go on behind that: llama.cpp's stack would grow without end.

    Here a rule is empty if it can be so by any way; llama.cpp's own check looks for an empty alternative alone.
    """
    empty = empty_rules(rules)
    if all([] in rules[name] for name in empty):
        return  # llama.cpp's check sees the same, and found nothing
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    numbers = {name: number for number, name in enumerate(rules)}
    edges: list[tuple[int, int, bool]] = []
    for name, alternatives in rules.items():
        for alternative in alternatives:
            for at, part in enumerate(alternative):
                if part is None:
                    break
                edges.append((numbers[name], numbers[part], at + 1 < len(alternative)))
                if part not in empty:
                    break
    starts, ends, _ = zip(*edges, strict=True)
    graph = coo_array(([1] * len(edges), (starts, ends)), (len(rules), len(rules)))
    of = connected_components(graph, directed=True, connection="strong")[1]
    for start, end, goes_on in edges:
        if goes_on and of[start] == of[end]:
            begins_with_itself(list(rules)[start])


def empty_rules(rules: dict[str, list[Alternative]]) -> set[str]:
    """Return the rules that may produce nothing."""
    users: dict[str, set[str]] = {}
    for name, alternatives in rules.items():
        for part in {part for alternative in alternatives for part in alternative if part is not None}:
            users.setdefault(part, set()).add(name)
    empty: set[str] = set()
    waiting = list(rules)
    while waiting:
        name = waiting.pop()
        if name not in empty and any(all(part in empty for part in each) for each in rules[name]):
            empty.add(name)
            waiting += users.get(name, ())
    return empty


def begins_with_itself(name: str) -> NoReturn:
    """Refuse a rule."""
    raise EngineError(
        f"the grammar is broken: rule {name.partition('_')[0]!r} can begin with itself, "
        "which llama.cpp cannot follow; let it begin with something else"
    )
