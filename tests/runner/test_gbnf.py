"""Grammars: what is wrong is said with its place, and what llama.cpp's own parser takes is taken."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moe_gguf.formats.errors import EngineError
from moe_gguf.formats.llamacpp import llama
from moe_gguf.runner.gbnf import check_grammar
from moe_gguf.runner.model import Model, tokenize

CHAIN = "".join(f"r{number} ::= r{number + 1}\n" for number in range(5000)) + 'r5000 ::= "a"\nroot ::= r0'
DOUBLING = (
    "".join(f"r{number} ::= r{number + 1} | r{number + 1}\n" for number in range(60)) + 'r60 ::= "a"\nroot ::= r0'
)


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("root ::= (", "line 1, column 11: ')' is expected"),
        ('root ::= "a"\nb : "c"', "line 2, column 3: '::=' is expected, at ': \"c\"'"),
        ('root ::= "a\n', "line 2, column 1: the grammar ends inside a literal or a class"),
        ('root ::= "\\q"', "line 1, column 11: an unknown escape, at '\\\\q\"'"),
        ('root ::= "\\u12"', "line 1, column 11: 4 hexadecimal digits are expected, at '\\\\u12\"'"),
        ("root ::= [a-", "line 1, column 13: the grammar ends inside a literal or a class"),
        ("root ::= * x", "line 1, column 10: something to repeat is expected in front, at '* x'"),
        ('root ::= "a"{x}', "line 1, column 14: a number is expected, at 'x}'"),
        ("root ::= other\nthird ::= other", "line 1, column 10: there is no rule 'other', at 'other'"),
        ('rot ::= "a"', "it has no rule 'root', with which an answer begins"),
        ("# nothing", "it has no rule"),
        ("root ::= a\na ::= b? root", "rule 'root' can begin with itself, "),
        ('root ::= "a"?*', "rule 'root' can begin with itself, "),
        ('root ::= a root "x" | "y"\na ::= c\nc ::= "c" |', "rule 'root' can begin with itself, "),
        ('root ::= "a"{100000000}', "line 1, column 13: at most 2000 repetitions can be asked for, at '{100000000}'"),
        ('root ::= "a"{3,2}', "line 1, column 13: at least 3 and at most 2 cannot both be, at '{3,2}'"),
        ("root ::= <[99999999999]>", "line 1, column 10: no token has such a number, at '<[99999999999]>'"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(grammar: str, message: str) -> None:
    with pytest.raises(EngineError, match=re.escape(f"the grammar is broken: {message}")):
        check_grammar(grammar + ('\nb ::= "b"' if "b?" in grammar else ""))


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (f"root ::= {'(' * 5000}", "the grammar nests deeper than 200 groups"),
        (CHAIN, "the grammar is too deep: rule 'r"),
        (DOUBLING, "the grammar is too deep: rule 'r"),
        (f'root ::= "{"a" * 100_000}"{{1000}}', "repetitions make more than 4000000 elements"),
    ],
)
def test_what_llamacpp_would_not_survive_is_refused(grammar: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        check_grammar(grammar)


@pytest.mark.parametrize("grammar", ['root ::= ("a"?)*', 'root ::= a a\na ::= b | c\nb ::= c\nc ::= |"x"'])
def test_what_is_empty_at_the_end_is_taken(tiny: Model, grammar: str) -> None:
    check_grammar(grammar)
    assert accepts(tiny, grammar)


def accepts(model: Model, grammar: str) -> bool:
    """Tell what llama.cpp's own parser makes of a grammar."""
    sampler = llama().llama_sampler_init_grammar(model.vocab, grammar.encode(), b"root")
    if sampler:
        llama().llama_sampler_free(sampler)
    return bool(sampler)


WORDS = [
    "root",
    "a",
    "b-1",
    "::=",
    " ",
    "\n",
    "\r\n",
    "|",
    "(",
    ")",
    "*",
    "+",
    "?",
    "{2}",
    "{0}",
    "{1,}",
    "{0,3}",
    "{2,1}",
    "{",
]
WORDS += [
    '"x"',
    '""',
    '"\\x41"',
    '"\\n',
    '"',
    "[a-z]",
    "[^\\]]",
    "[]",
    "[-",
    "]",
    ".",
    "#c\n",
    "<[5]>",
    "!<[5]>",
    "<",
    "é",
    "_",
    "5",
]
PARTS = st.lists(st.sampled_from(WORDS), max_size=8).map("".join)
GRAMMARS = st.builds(
    lambda first, second, third: f"root ::= {first}\na ::= {second}\nb-1 ::= {third}", PARTS, PARTS, PARTS
)


@settings(max_examples=1500, deadline=None)
@given(GRAMMARS | PARTS.filter(bool))
def test_what_llamacpp_takes_is_taken_and_nothing_else(tiny: Model, grammar: str) -> None:
    try:
        check_grammar(grammar, lambda text: len(tokenize(tiny, text, add_special=False)) == 1)
    except EngineError as error:
        if not re.search("cannot both be|begin with itself", str(error)):  # llama.cpp may never answer
            assert not accepts(tiny, grammar), str(error)
    else:
        assert accepts(tiny, grammar)
