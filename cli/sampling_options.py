"""The sampling flags of `chat` and `generate`, by llama.cpp's names and with its defaults."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..formats.text_files import read_text_file
from .numbers import Finite, FiniteRange

if TYPE_CHECKING:
    from ..runner.sampling import SamplingOptions

Command = TypeVar("Command", bound=Callable[..., Any])

SEED = click.IntRange(-1, 2**32 - 1)
LOGIT_BIAS = re.compile(r"\s*(\d+)\s*([+-])\s*(inf|[0-9.eE+-]+)\s*")

# names of parameters that differ from the fields of SamplingOptions
FIELDS = {
    "typical": "typical_p",
    "top_nsigma": "top_n_sigma",
    "dynatemp_exp": "dynatemp_exponent",
    "mirostat_ent": "mirostat_tau",
    "mirostat_lr": "mirostat_eta",
}
NUMBERS: tuple[tuple[tuple[str, ...], Any, float, str], ...] = (
    (("--temp", "--temperature"), FiniteRange(min=0), 0.8, "Temperature; 0 always takes the likeliest token."),
    (("--top-k",), click.IntRange(min=0), 40, "Choose among the K likeliest tokens; 0 is all."),
    (("--top-p",), FiniteRange(0, 1), 0.95, "Choose among the likeliest tokens of this total probability."),
    (("--min-p",), FiniteRange(0, 1), 0.05, "Drop tokens less likely than this share of the likeliest."),
    (("--typical", "--typical-p"), FiniteRange(0, 1), 1.0, "Locally typical sampling; 1 is off."),
    (("--top-nsigma", "--top-n-sigma"), Finite(), -1.0, "Keep logits within N standard deviations; -1 is off."),
    (("--xtc-probability",), FiniteRange(0, 1), 0.0, "Chance of excluding top choices; 0 is off."),
    (("--xtc-threshold",), FiniteRange(0, 1), 0.1, "Likeliness from which a token is a top choice."),
    (("--dynatemp-range",), FiniteRange(min=0), 0.0, "Dynamic temperature range; 0 is off."),
    (("--dynatemp-exp",), FiniteRange(min=0), 1.0, "Dynamic temperature exponent."),
    (("--repeat-penalty",), FiniteRange(min=0, min_open=True), 1.0, "Penalize repeated tokens; 1 is off."),
    (("--repeat-last-n",), click.IntRange(min=0), 64, "Tokens that penalties look back on."),
    (("--presence-penalty",), Finite(), 0.0, "Penalty for tokens that occurred."),
    (("--frequency-penalty",), Finite(), 0.0, "Penalty for each time that a token occurred."),
    (("--dry-multiplier",), FiniteRange(min=0), 0.0, "DRY penalty on repeated passages; 0 is off."),
    (("--dry-base",), FiniteRange(min=0), 1.75, "Base of DRY's growth with length."),
    (("--dry-allowed-length",), click.IntRange(min=0), 2, "Length of a passage that may repeat."),
    (("--dry-penalty-last-n",), click.IntRange(min=0), 64, "Tokens that DRY looks back on."),
    (("--mirostat",), click.IntRange(0, 2), 0, "Mirostat 1 or 2 instead of most of the others; 0 is off."),
    (("--mirostat-ent",), FiniteRange(min=0), 5.0, "Mirostat's target entropy (tau)."),
    (("--mirostat-lr",), FiniteRange(min=0), 0.1, "Mirostat's learning rate (eta)."),
)


def n_predict_option(text: str) -> Callable[[Command], Command]:
    """Return llama.cpp's -n, as a decorator; `text` is its help."""
    kind = click.IntRange(min=-1)
    names = ("-n", "--n-predict", "--predict", "n_predict")
    return click.option(*names, type=kind, default=-1, show_default=True, help=text)


def sampling_options(command: Command) -> Command:
    """Give a command the sampling flags; `build_sampling` reads their values."""
    flags = [
        click.option("-s", "--seed", type=SEED, default=-1, help="Seed of the random numbers; -1 draws one."),
        *(
            click.option(*names, type=kind, default=default, show_default=True, help=text)
            for names, kind, default, text in NUMBERS
        ),
        click.option(
            "--dry-sequence-breaker",
            "dry_sequence_breakers",
            multiple=True,
            help='Text at which DRY stops looking back, instead of newline, :, " and *; repeatable; "none" for none.',
        ),
        click.option(
            "--samplers",
            default=None,
            metavar="NAME;NAME",
            help="Samplers in their order, as in top_k;temperature; those left out are off.",
        ),
        click.option("--grammar", default=None, help="Allow only what a GBNF grammar produces."),
        click.option(
            "--grammar-file", type=click.Path(exists=True, dir_okay=False), help="Read the grammar from this file."
        ),
        click.option("-j", "--json-schema", default=None, help='Allow only JSON of this schema; "{}" is any JSON.'),
        click.option(
            "-jf",
            "--json-schema-file",
            type=click.Path(exists=True, dir_okay=False),
            help="Read the schema from this file.",
        ),
        click.option(
            "-l", "--logit-bias", multiple=True, help="TOKEN_ID+BIAS or TOKEN_ID-BIAS, e.g. 15043+1; repeatable."
        ),
        click.option("--ignore-eos", is_flag=True, help="Never end by the model's own choice."),
    ]
    for flag in reversed(flags):
        command = flag(command)
    return command


def build_sampling(values: dict[str, Any]) -> "SamplingOptions":
    """Take the sampling flags out of a command's values. Raises click.UsageError for flags that exclude each other."""
    from ..runner.sampling import SamplingOptions

    breakers = values.pop("dry_sequence_breakers")
    seed = values.pop("seed")
    settings: dict[str, Any] = {
        "seed": seed,
        "grammar": _grammar(values),
        "logit_bias": tuple(_logit_bias(text) for text in values.pop("logit_bias")),
        "ignore_eos": values.pop("ignore_eos"),
        "typical_p": values.pop("typical"),
        "top_n_sigma": values.pop("top_nsigma"),
        "dynatemp_exponent": values.pop("dynatemp_exp"),
        "mirostat_tau": values.pop("mirostat_ent"),
        "mirostat_eta": values.pop("mirostat_lr"),
    }
    settings |= _samplers(values.pop("samplers"))
    names = {name.lstrip("-").replace("-", "_") for (name, *_), *_ in NUMBERS}
    settings |= {name: values.pop(name) for name in sorted(names & values.keys())}
    if breakers:
        settings["dry_sequence_breakers"] = () if "none" in breakers else tuple(map(unescape, breakers))
    return SamplingOptions(**settings, own=_given())


def _given() -> frozenset[str]:
    """Return the fields of SamplingOptions that the command line names; a file may recommend the others."""
    context = click.get_current_context()
    default = click.core.ParameterSource.DEFAULT
    return frozenset(
        FIELDS.get(name, name) for name in context.params if context.get_parameter_source(name) is not default
    )


def _samplers(text: str | None) -> dict[str, tuple[str, ...]]:
    """Return the samplers' names; nothing when they are not given."""
    if text is None:
        return {}
    from ..runner.sampling import SAMPLERS, sampler_name

    names = {given: sampler_name(given) for given in text.split(";") if given.strip()}
    for given, name in names.items():
        if name is None:
            raise click.BadParameter(f"there is no {given!r}; known are {', '.join(SAMPLERS)}", param_hint="--samplers")
    return {"samplers": tuple(name for name in names.values() if name)}


def _grammar(values: dict[str, Any]) -> str | None:
    """Return the one grammar that four flags may give."""
    grammar, grammar_file = values.pop("grammar"), values.pop("grammar_file")
    schema, schema_file = values.pop("json_schema"), values.pop("json_schema_file")
    if sum(each is not None for each in (grammar, grammar_file, schema, schema_file)) > 1:
        raise click.UsageError("give one of --grammar, --grammar-file, --json-schema and --json-schema-file")
    if grammar_file:
        grammar = read_text_file(grammar_file)
    if schema_file:
        schema = read_text_file(schema_file)
    if schema is None:
        return grammar or None
    from ..runner.json_grammar import json_schema_grammar

    return json_schema_grammar(schema)


def _logit_bias(text: str) -> tuple[int, float]:
    match = LOGIT_BIAS.fullmatch(text)
    try:
        assert match
        return int(match[1]), float(match[2] + match[3])
    except (AssertionError, ValueError):
        raise click.BadParameter(f"{text!r}: write TOKEN_ID+BIAS, as in 15043+1", param_hint="--logit-bias") from None


ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "'": "'", '"': '"', "\\": "\\"}


def unescape(text: str) -> str:
    """Replace \\n, \\r, \\t, \\', \\", \\\\ and \\xHH as llama.cpp does; leave any other backslash alone."""

    def replace(match: re.Match[str]) -> str:
        return chr(int(match[1][1:], 16)) if match[1][0] == "x" else ESCAPES[match[1]]

    return re.sub(r"\\([nrt'\"\\]|x[0-9a-fA-F]{2})", replace, text)
