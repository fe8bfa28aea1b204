"""A GBNF grammar in, nothing out, or what is wrong with it and where: what must not reach llama.cpp's own parser.

That parser (src/llama-grammar.cpp, whose rules these are) prints its complaints to stderr. It does not end for
`"a"{3,2}`, nor for rules that begin with themselves behind something that is empty by way of another rule; for some
grammars its time doubles with every rule; and it recurses as deep as a grammar goes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from ..formats.errors import EngineError
from ..formats.llamacpp import shortened
from .gbnf_walks import Alternative, check_beginnings, check_growth

MOST_REPETITIONS = 2000  # MAX_REPETITION_THRESHOLD
MOST_ELEMENTS = 4_000_000  # of 8 bytes each in llama.cpp
DEEPEST = 200
WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")
DIGITS = frozenset("0123456789")
HEX = frozenset("0123456789abcdefABCDEF")
HEX_LENGTHS = {"x": 2, "u": 4, "U": 8}
PLAIN_ESCAPES = frozenset('trn\\"[]-')


@dataclass(frozen=True)
class Item:
    """One item of a sequence: what stands for it in `Alternative`, llama.cpp's elements, rules made for it."""

    parts: Alternative
    n_elements: int
    n_rules: int = 1


def check_grammar(text: str, is_token: Callable[[str], bool] = lambda _: True) -> None:
    """Refuse what llama.cpp cannot take, by line and column.

    `is_token` tells whether "<think>" is one token of the model. Raises EngineError.
    """
    reader = Reader(text, is_token)
    reader.space(newlines=True)
    while reader.here:
        reader.rule()
    if not reader.rules:
        raise EngineError("the grammar is broken: it has no rule")
    for name, at in reader.referred.items():
        if name not in reader.rules:
            reader.at = at
            reader.fail(f"there is no rule {name!r}")
    if "root" not in reader.rules:
        raise EngineError("the grammar is broken: it has no rule 'root', with which an answer begins")
    check_beginnings(reader.rules)
    check_growth(reader.rules)


@dataclass
class Reader:
    """A grammar's text and how far it is read; `rules` grows with the rules that llama.cpp makes of groups, too."""

    text: str
    is_token: Callable[[str], bool]
    at: int = 0
    depth: int = 0
    n_elements: int = 0
    rules: dict[str, list[Alternative]] = field(default_factory=dict)
    referred: dict[str, int] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    n_made: int = 0

    @property
    def here(self) -> str:
        """The next character; empty at the end."""
        return self.text[self.at : self.at + 1]

    def fail(self, what: str) -> NoReturn:
        """Say what is wrong at the place that is read."""
        line = self.text.count("\n", 0, self.at) + 1
        column = self.at - self.text.rfind("\n", 0, self.at)
        rest = self.text[self.at : self.at + 60].partition("\n")[0]
        near = f", at {shortened(rest)!a}" if rest else ""
        raise EngineError(f"the grammar is broken: line {line}, column {column}: {what}{near}")

    def expect(self, mark: str) -> None:
        """Go on behind a mark that must stand here."""
        if not self.text.startswith(mark, self.at):
            self.fail(f"{mark!r} is expected")
        self.at += len(mark)

    def while_in(self, letters: frozenset[str], what: str) -> str:
        """Return the letters that stand here, at least one."""
        start = self.at
        while self.here in letters and self.here:
            self.at += 1
        if start == self.at:
            self.fail(f"{what} is expected")
        return self.text[start : self.at]

    def space(self, newlines: bool) -> None:
        """Skip blanks and comments."""
        blanks = " \t\r\n" if newlines else " \t"
        while (here := self.here) and (here in blanks or here == "#"):
            self.at += 1
            while here == "#" and self.here and self.here not in "\r\n":
                self.at += 1

    def rule(self) -> None:
        """Read `name ::= alternatives` and the end of its line."""
        name = self.while_in(WORD, "a rule's name")
        self.space(newlines=False)
        self.expect("::=")
        self.space(newlines=True)
        self.names.add(name)
        self.rules[name] = self.alternatives(name, nested=False)
        if self.here and self.here not in "\r\n":
            self.fail("the end of the line is expected")
        self.space(newlines=True)

    def alternatives(self, name: str, nested: bool) -> list[Alternative]:
        """Read sequences with | between them."""
        found = [self.sequence(name, nested)]
        while self.here == "|":
            self.at += 1
            self.space(newlines=True)
            found.append(self.sequence(name, nested))
        return found

    def sequence(self, name: str, nested: bool) -> Alternative:
        """Read items with their repetitions."""
        items: list[Item] = []
        while here := self.here:
            if here in "*+?{":
                if not items or not items[-1].n_elements:
                    self.fail("something to repeat is expected in front")
                least, most = self.repetition(nested)
                items[-1] = self.repeated(name, items[-1], least, most)
            elif item := self.item(name, here):
                items.append(item)
                self.n_elements += item.n_elements
            else:
                break
            self.space(newlines=nested)
        return [part for item in items for part in item.parts]

    def item(self, name: str, here: str) -> Item | None:
        """Read one item; None for what is none."""
        if here == '"':
            return self.characters('"')
        if here == "[":
            self.at += self.text.startswith("[^", self.at)
            return self.characters("]")
        if here == "(":
            return self.group(name)
        if here in "<!":
            self.token()
        elif here == ".":
            self.at += 1
        elif here in WORD:
            start = self.at
            referred = self.while_in(WORD, "a rule's name")
            self.referred.setdefault(referred, start)
            self.names.add(referred)
            return Item([referred], 1)
        else:
            return None
        return Item([None], 1)

    def characters(self, end: str) -> Item:
        """Read the characters of a literal or a class; without any it is nothing at all."""
        self.at += 1
        count = 0
        while self.here != end:
            self.character()
            count += 1
            if end == "]" and self.here == "-" and self.text[self.at + 1 : self.at + 2] != "]":
                self.at += 1
                self.character()
                count += 1
        self.at += 1
        return Item([None] if count else [], count)

    def character(self) -> None:
        """Read one character or escape."""
        if not self.here:
            self.fail("the grammar ends inside a literal or a class")
        if self.here != "\\":
            self.at += 1
            return
        kind = self.text[self.at + 1 : self.at + 2]
        digits = HEX_LENGTHS.get(kind, 0)
        spelled = self.text[self.at + 2 : self.at + 2 + digits]
        if not digits and (not kind or kind not in PLAIN_ESCAPES):
            self.fail("an unknown escape")
        if len(spelled) != digits or not HEX.issuperset(spelled):
            self.fail(f"{digits} hexadecimal digits are expected")
        self.at += 2 + digits

    def token(self) -> None:
        """Read <name> or <[id]>, perhaps with ! in front."""
        self.at += self.here == "!"
        start = self.at
        self.expect("<")
        if self.here == "[":
            self.at += 1
            if int(self.while_in(DIGITS, "a token's number")[:30]) >= 2**32:
                self.at = start
                self.fail("no token has such a number")
            self.expect("]>")
            return
        end = self.text.find(">", self.at)
        if end < 0:
            self.fail("'>' is expected")
        if not self.is_token(self.text[start : end + 1]):
            self.at = start
            self.fail("this is not one token of the model")
        self.at = end + 1

    def group(self, name: str) -> Item:
        """Read (alternatives), of which llama.cpp makes a rule."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise EngineError(f"the grammar nests deeper than {DEEPEST} groups")
        self.at += 1
        self.space(newlines=True)
        before = self.n_made + len(self.names)
        made = self.made(name)
        self.rules[made] = self.alternatives(name, nested=True)
        self.expect(")")
        self.depth -= 1
        return Item([made], 1, max(1, self.n_made + len(self.names) - before))

    def repetition(self, nested: bool) -> tuple[int, int | None]:
        """Read *, +, ?, {m}, {m,} or {m,n}; return the least and the most, None without a limit."""
        mark, start = self.here, self.at
        self.at += 1
        if mark != "{":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[mark]
        self.space(nested)
        least = self.count()
        most: int | None = least
        self.space(nested)
        if self.here == ",":
            self.at += 1
            self.space(nested)
            most = self.count() if self.here in DIGITS and self.here else None
            self.space(nested)
        self.expect("}")
        if least > MOST_REPETITIONS:
            self.at = start
            self.fail(f"at most {MOST_REPETITIONS} repetitions can be asked for")
        if most is not None and most < least:
            self.at = start
            self.fail(f"at least {least} and at most {most} cannot both be")
        return least, None if most is not None and most > MOST_REPETITIONS else most

    def count(self) -> int:
        """Read a number; one that is too long to be read is very large."""
        digits = self.while_in(DIGITS, "a number").lstrip("0") or "0"
        if len(digits) > 19:
            self.fail("a number that is too large")
        return int(digits)

    def repeated(self, name: str, item: Item, least: int, most: int | None) -> Item:
        """Rewrite a repetition as llama.cpp does: S{m,n} is m times S and a rule of its own for the rest."""
        total = most or least or 1
        if item.n_rules * total > MOST_REPETITIONS:
            self.fail("too many repetitions of something that is repeated or made of many rules itself")
        n_more = 1 if most is None else most - least
        elements = item.n_elements * (max(least, 1) + n_more)
        self.n_elements += elements
        if self.n_elements > MOST_ELEMENTS:
            self.fail(f"repetitions make more than {MOST_ELEMENTS} elements")
        parts = item.parts if least else []
        if n_more:
            made = self.made(name)
            self.n_made += n_more - 1
            self.rules[made] = [[*item.parts, made] if most is None else item.parts, []]
            parts = [*parts, made]
        return Item(parts, item.n_elements * least + bool(n_more), item.n_rules * total)

    def made(self, name: str) -> str:
        """Return a name that no rule of the text can have."""
        self.n_made += 1
        return f"{name}_{self.n_made}"
