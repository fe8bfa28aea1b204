"""How a byte-level tokenizer cuts text before merging, under the name that llama.cpp knows it by.

In: tokenizer.json as a mapping, and the `tokenizers` library's Tokenizer. Out: a value for
`tokenizer.ggml.pre`. Source of the names' patterns: llama.cpp src/llama-vocab.cpp `llm_tokenizer_bpe`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from ...formats.errors import TokenizerError
from .pre_tokenizer_names import CHECK_TEXT, NAME_OF_HASH, NAMES
from .reference import encode, load_reference, pieces_of
from .tokenizer_files import steps

# Patterns in the one spelling that `_spelled` gives them.
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = rf"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|NUMBERS| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_QWEN2 = _ENDINGS + "|" + _WORDS.replace("NUMBERS", r"\p{N}")
_LLAMA3 = _ENDINGS + "|" + _WORDS.replace("NUMBERS", r"\p{N}{1,3}")
_QWEN35 = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _SPACES
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+ENDING"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*ENDING"
    rf"|NUMBERS| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_TEKKEN = _CASED.replace("ENDING", "").replace("NUMBERS", r"\p{N}")
_GPT4O = _CASED.replace("ENDING", _ENDINGS + "?").replace("NUMBERS", r"\p{N}{1,3}")
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)
# Some letters are escaped since editors and tools replace them by their canonical equivalents.
_LATIN_AND_KIN = (
    r"\s?"
    "[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙ"
    "ὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ"
    "-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
)
_HAN = "[一-龥ࠀ-一가-퟿]+"
_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
_PUNCTUATION_RUNS = "<Punctuation Contiguous>"


@dataclass(frozen=True)
class PreTokenizer:
    """One way of cutting: the patterns applied in turn, and whether whole words skip the merges.

    `aliases` are other models' names for the same (they differ in how text is printed, not read).
    """

    name: str
    patterns: tuple[str, ...]
    ignore_merges: bool = False
    aliases: tuple[str, ...] = ()


# The first of several that cut alike on the telling text is the one to name.
KNOWN = (
    PreTokenizer(
        "smollm",
        (r"\p{N}", _GPT2),
        aliases=("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
    ),
    PreTokenizer(
        "gpt-2",
        (_GPT2,),
        aliases=(
            *("mpt", "olmo", "phi-2", "jais", "trillion", "granite-docling", "gigachat", "mellum"),
            *("modern-bert", "jina-v1-en", "jina-v2-es", "jina-v2-de", "jina-v2-code", "roberta-bpe"),
            *("a.x-4.0", "exaone4"),
        ),
    ),
    PreTokenizer(
        "llama-bpe",
        (_LLAMA3,),
        ignore_merges=True,
        aliases=("falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano", "glm4"),
    ),
    PreTokenizer("smaug-bpe", (_LLAMA3,), aliases=("dbrx", "chatglm-bpe")),
    PreTokenizer(
        "qwen2",
        (_QWEN2,),
        aliases=(
            *("stablelm2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "hunyuan", "solar-open"),
            *("grok-2", "bailingmoe", "bailingmoe2"),
        ),
    ),
    PreTokenizer("qwen35", (_QWEN35,)),
    PreTokenizer("tekken", (_TEKKEN,), ignore_merges=True),
    PreTokenizer("gpt-4o", (_GPT4O,), aliases=("llama4", "kanana2", "talkie", "minimax-m2")),
    PreTokenizer(
        "deepseek-v3",
        (r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", _DEEPSEEK3),
        aliases=("hunyuan-dense", "joyai-llm", "hy_v4"),
    ),
    PreTokenizer(
        "deepseek-llm",
        (r"[\r\n]", _LATIN_AND_KIN, r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _HAN, r"\p{N}+"),
    ),
    PreTokenizer("deepseek-coder", (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, r"\p{N}")),
    PreTokenizer("falcon", (_PUNCTUATION_RUNS, _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    PreTokenizer("poro-chat", (_BLOOM,), aliases=("bloom", "gpt3-finnish")),
    PreTokenizer("viking", (_BLOOM, r"\p{N}")),
)


def name_pre_tokenizer(tokenizer: Mapping[str, Any], reference: Any) -> tuple[str, tuple[str, ...]]:
    """Return llama.cpp's name for a byte-level tokenizer's pre-tokenizer, and warnings.

    The definition decides; where it is unknown, how it cuts a text made to tell pre-tokenizers apart.
    llama.cpp's own hash of a check text chooses among names that mean the same, and speaks last: it does not
    see all of the definition (Llama 3 without its bos hashes as another model). Raises TokenizerError.
    """
    ids = encode(reference, CHECK_TEXT, add_special_tokens=True)
    by_hash = NAME_OF_HASH.get(sha256(str(ids).encode()).hexdigest())
    definition = tokenizer.get("pre_tokenizer")
    patterns = patterns_of(definition)
    alike = [known for known in KNOWN if known.patterns == patterns]
    spelled_anew = not alike
    if spelled_anew:
        if by_hash:
            return by_hash, ()
        pieces = cut(definition, TELLING_TEXT)
        alike = [known for known in KNOWN if cut(_as_json(known), TELLING_TEXT) == pieces]
    if not alike:
        raise TokenizerError(
            "the pre-tokenizer in tokenizer.json is none that llama.cpp is known to have; if you know which one "
            f"it is, pass --pre-tokenizer NAME, with one of: {', '.join(NAMES)}"
        )
    chosen, warnings = _choose(alike, tokenizer["model"].get("ignore_merges") is True)
    if spelled_anew:
        warnings += (f"the pre-tokenizer is spelled in a new way, but cuts a test text as {chosen.name} does",)
    return (by_hash if by_hash in chosen.aliases else chosen.name), warnings


def check_name(name: str) -> str:
    """Return the name when llama.cpp has a pre-tokenizer of that name, else raise TokenizerError."""
    if name not in NAMES:
        raise TokenizerError(f"llama.cpp has no pre-tokenizer {name!r}; it has: {', '.join(NAMES)}")
    return name


def _choose(alike: list[PreTokenizer], ignore_merges: bool) -> tuple[PreTokenizer, tuple[str, ...]]:
    for known in alike:
        if known.ignore_merges == ignore_merges:
            return known, ()
    what = "keeps whole words of the vocabulary" if ignore_merges else "merges every word from its letters"
    return alike[0], (f"this tokenizer {what}, llama.cpp's {alike[0].name} does not: rare words may differ",)


def patterns_of(pre_tokenizer: Any) -> tuple[str, ...] | None:
    """Return the patterns that a pre-tokenizer cuts by, in one spelling; None if it does something else."""
    patterns: list[str] = []
    in_bytes = False
    for step in steps(pre_tokenizer, "pretokenizers"):
        kind = step.get("type")
        if kind == "ByteLevel":
            in_bytes = True
            patterns += [_GPT2] if step.get("use_regex", True) is True else []
        elif kind == "Digits":
            patterns.append(r"\p{N}" if step.get("individual_digits") is True else r"\p{N}+")
        elif kind == "Punctuation" and step.get("behavior") == "Contiguous":
            patterns.append(_PUNCTUATION_RUNS)
        elif kind == "Split" and (pattern := _split_pattern(step)) is not None:
            patterns.append(_spelled(pattern))
        else:
            return None
    return tuple(patterns) if in_bytes else None


def _split_pattern(step: Mapping[str, Any]) -> str | None:
    pattern = step.get("pattern")
    if not isinstance(pattern, dict):
        return None
    text = pattern.get("Regex")
    if text is None and isinstance(pattern.get("String"), str):
        text = re.escape(pattern["String"])
    if not isinstance(text, str):
        return None
    if (step.get("behavior"), step.get("invert") is True) == ("Isolated", False):
        return text
    # What matches is kept and the rest removed: the same where the pattern leaves no rest, as those do.
    matches_everything = text.endswith(r"|\s+")
    return text if (step.get("behavior"), step.get("invert")) == ("Removed", True) and matches_everything else None


def _spelled(pattern: str) -> str:
    """Rewrite a pattern's common variants to one spelling; none changes what it matches.

    Possessive quantifiers: what follows never matches what they took. `\\s*[\\r\\n]`: the run of spaces before
    it already reaches to the last line break.
    """
    pattern = pattern.replace("\r", r"\r").replace("\n", r"\n").replace(r"\p{N}{1}", r"\p{N}")
    pattern = pattern.replace("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", _ENDINGS)
    pattern = pattern.replace("'(?i:[sdmt]|ll|ve|re)", _ENDINGS)
    pattern = pattern.replace("]?+\\p{L}+", "]?\\p{L}+").replace("]++[", "]+[").replace("}{1,3}+|", "}{1,3}|")
    return pattern.replace(r"|\s*[\r\n]|\s+(?!\S)", r"|\s*[\r\n]+|\s+(?!\S)").replace(r"|\s++$", r"|\s+$")


def cut(pre_tokenizer: Any, text: str) -> list[str] | None:
    """Cut a text as the `tokenizers` library does it; None when it refuses the definition."""
    bare = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    try:
        return pieces_of(load_reference({**bare, "pre_tokenizer": pre_tokenizer}, "the pre-tokenizer"), text)
    except TokenizerError:
        return None


def _as_json(known: PreTokenizer) -> dict[str, Any]:
    cuts: list[dict[str, Any]] = [
        {"type": "Punctuation", "behavior": "Contiguous"}
        if pattern == _PUNCTUATION_RUNS
        else {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in known.patterns
    ]
    cuts.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False})
    return {"type": "Sequence", "pretokenizers": cuts}


# Endings in both cases, digits in runs of 1 to 10, letters of several scripts and cases with combining marks,
# punctuation before line breaks and slashes, and spaces of every kind: where pre-tokenizers part ways.
TELLING_TEXT = CHECK_TEXT + (
    " I'm we'RE it'S don'T I'LL he'd'sx  0 12 123 1234 12345 1234567890 ١٢٣٤ ½²Ⅻ  aB Ab AB ABc aBCd HTTPServer"
    " ÀÉîõ Straße ΑΒγδ ДЕж ǅ ʰⁿ हिन्दी भाषा ไทยคำ أَلِف e\u0301a\u0308 中文字かなカナ한국어 foo_bar::baz(x,y){}\n\n"
    "\t\tif (a!=b) //c\n/path/to\r\n\r\n...\n ,\n  .\t\n\u00a0\u2003x\u3000y\u200bz …—“q”"
    " 😀👩\u200d👩\u200d👧🏽 <s>[INST] $5.00 #1 a@b.c"
    "\n   trailing   "
)
