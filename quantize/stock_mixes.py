"""The policy of every file type: the roles that differ from its base type, and when.

A rule is (condition, type); the first whose condition holds decides, none means the base type. The choices are
llama.cpp's (src/llama-quant.cpp, llama_tensor_get_type_impl), so that our files equal those of its quantizer.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from gguf import GGMLQuantizationType

from ..models.tensor_roles import Role
from .facts import ModelFacts

_T = GGMLQuantizationType


@dataclass(frozen=True)
class Place:
    """Where a tensor stands: the `index`th of `count` layers (or value matrices, counted as they come)."""

    facts: ModelFacts
    has_imatrix: bool
    index: int = 0
    count: int = 1


Condition = Callable[[Place], bool]
Rule = tuple[Condition, GGMLQuantizationType]


@dataclass(frozen=True)
class StockMix:
    """The rules of one file type by role; `lowest` marks the codebook types below 3 bits, which have their own."""

    output: tuple[Rule, ...] = ()
    token_embd: tuple[Rule, ...] = ()
    attn_q: tuple[Rule, ...] = ()
    attn_k: tuple[Rule, ...] = ()
    attn_v: tuple[Rule, ...] = ()
    attn_output: tuple[Rule, ...] = ()
    ffn_gate: tuple[Rule, ...] = ()
    ffn_up: tuple[Rule, ...] = ()
    ffn_down: tuple[Rule, ...] = ()
    lowest: bool = False

    def rules(self, role: Role) -> tuple[Rule, ...]:
        """Return the rules of a role; OTHER has none."""
        return () if role is Role.OTHER else getattr(self, role.name.lower())


def always(_: Place) -> bool:
    """Hold everywhere."""
    return True


def first_eighth(place: Place) -> bool:
    """Hold in the first eighth of the layers."""
    return place.index < place.count // 8


def first_sixteenth(place: Place) -> bool:
    """Hold in the first sixteenth of the layers."""
    return place.index < place.count // 16


def more_bits(place: Place) -> bool:
    """Hold in the first and the last eighth of the layers, and in every third between."""
    i, n = place.index, place.count
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def middle(place: Place) -> bool:
    """Hold in neither the first nor the last eighth of the layers."""
    return place.count // 8 <= place.index < 7 * place.count // 8


def first_two(place: Place) -> bool:
    """Hold for the first two."""
    return place.index < 2


def first_four(place: Place) -> bool:
    """Hold for the first four."""
    return place.index < 4


def shared_heads(place: Place) -> bool:
    """Hold when four or more query heads share a key and value head: the value matrix is small then."""
    return place.facts.n_gqa >= 4


def eight_experts(place: Place) -> bool:
    """Hold for exactly eight experts: attention is a small part of such a model."""
    return place.facts.n_expert == 8


def no_imatrix(place: Place) -> bool:
    """Hold without an importance matrix."""
    return not place.has_imatrix


def both(*conditions: Condition) -> Condition:
    """Hold where all conditions hold."""
    return lambda place: all(condition(place) for condition in conditions)


def either(*conditions: Condition) -> Condition:
    """Hold where one of the conditions holds."""
    return lambda place: any(condition(place) for condition in conditions)


def with_imatrix(place: Place) -> bool:
    """Hold with an importance matrix."""
    return place.has_imatrix


def four_experts(place: Place) -> bool:
    """Hold for four or more experts."""
    return place.facts.n_expert >= 4


_EIGHT_Q5_K: Rule = (eight_experts, _T.Q5_K)
_SHARED_Q4_K: Rule = (shared_heads, _T.Q4_K)


def _lowest(base: GGMLQuantizationType, attn_output: tuple[Rule, ...] = ()) -> StockMix:
    """Return the mixture of a codebook type below 3 bits: sensitive tensors in `base`, the next better type."""
    return StockMix(
        output=((always, _T.Q5_K),),
        token_embd=((always, base),),
        attn_k=((eight_experts, _T.Q4_K),),
        attn_v=((either(shared_heads, four_experts), _T.Q4_K), (always, base)),
        attn_output=(_EIGHT_Q5_K, *attn_output),
        ffn_down=((first_eighth, base),),
        lowest=True,
    )


_NON_LINEAR_4 = StockMix(
    attn_v=((shared_heads, _T.Q5_K),),
    attn_output=(_EIGHT_Q5_K,),
    ffn_down=((both(first_eighth, no_imatrix), _T.Q5_K),),
)

_TERNARY = StockMix(token_embd=((always, _T.Q4_K),))

STOCK_MIXES: dict[str, StockMix] = {
    "Q5_K_M": StockMix(attn_v=((more_bits, _T.Q6_K),), ffn_down=((more_bits, _T.Q6_K),)),
    "Q5_0": StockMix(ffn_down=((both(first_eighth, with_imatrix), _T.Q5_1),)),
    "Q4_K_M": StockMix(
        attn_v=((more_bits, _T.Q6_K),),
        attn_output=(_EIGHT_Q5_K,),
        ffn_down=((more_bits, _T.Q6_K),),
    ),
    "Q4_K_S": StockMix(
        attn_v=((first_four, _T.Q5_K),),
        attn_output=(_EIGHT_Q5_K,),
        ffn_down=((first_eighth, _T.Q5_K),),
    ),
    "Q4_0": StockMix(ffn_down=((both(first_eighth, with_imatrix), _T.Q4_1),)),
    "IQ4_NL": _NON_LINEAR_4,
    "IQ4_XS": _NON_LINEAR_4,
    "Q3_K_L": StockMix(
        attn_v=((always, _T.Q5_K),),
        # Eight experts keep the base type here: llama.cpp's list of exceptions leaves this file type out.
        attn_output=((eight_experts, _T.Q3_K), (always, _T.Q5_K)),
        ffn_down=((always, _T.Q5_K),),
    ),
    "Q3_K_M": StockMix(
        attn_v=((first_two, _T.Q5_K), (always, _T.Q4_K)),
        attn_output=(_EIGHT_Q5_K, (always, _T.Q4_K)),
        ffn_down=((first_sixteenth, _T.Q5_K), (always, _T.Q4_K)),
    ),
    "Q3_K_S": StockMix(attn_output=(_EIGHT_Q5_K,)),
    "IQ3_M": StockMix(
        attn_v=((always, _T.Q4_K),),
        attn_output=(_EIGHT_Q5_K, (always, _T.Q4_K)),
        ffn_down=((either(first_eighth, both(eight_experts, more_bits)), _T.Q4_K),),
    ),
    "IQ3_S": StockMix(attn_v=(_SHARED_Q4_K,), attn_output=(_EIGHT_Q5_K,)),
    "IQ3_XS": StockMix(
        attn_q=((always, _T.IQ3_XXS),),
        attn_k=((always, _T.IQ3_XXS),),
        attn_v=(_SHARED_Q4_K,),
        attn_output=(_EIGHT_Q5_K,),
        ffn_gate=((middle, _T.IQ3_XXS),),
        ffn_up=((middle, _T.IQ3_XXS),),
    ),
    "IQ3_XXS": StockMix(
        output=((always, _T.Q5_K),),
        token_embd=((always, _T.IQ3_S),),
        attn_q=((always, _T.IQ2_S),),
        attn_k=((always, _T.IQ2_S),),
        attn_v=(_SHARED_Q4_K, (no_imatrix, _T.IQ3_S)),
        attn_output=(_EIGHT_Q5_K, (always, _T.IQ3_S)),
        ffn_down=((both(first_eighth, no_imatrix), _T.Q4_K), (no_imatrix, _T.Q3_K)),
    ),
    "Q2_K": StockMix(
        attn_v=(_SHARED_Q4_K, (always, _T.Q3_K)),
        attn_output=(_EIGHT_Q5_K, (always, _T.Q3_K)),
        ffn_down=((always, _T.Q3_K),),
    ),
    "Q2_K_S": StockMix(attn_v=(_SHARED_Q4_K,), ffn_down=((first_eighth, _T.Q4_K),)),
    "IQ2_M": _lowest(_T.IQ3_S, attn_output=((always, _T.IQ3_S),)),
    "IQ2_S": _lowest(_T.IQ3_S, attn_output=((always, _T.IQ3_S),)),
    "IQ2_XS": _lowest(_T.Q2_K),
    "IQ2_XXS": _lowest(_T.Q2_K),
    "IQ1_M": _lowest(_T.Q2_K, attn_output=((always, _T.IQ2_XXS),)),
    "IQ1_S": _lowest(_T.Q2_K, attn_output=((always, _T.IQ2_XXS),)),
    "TQ1_0": _TERNARY,
    "TQ2_0": _TERNARY,
    "Q2_0": _TERNARY,
}

# Falcon's attention output and feed-forward tolerate fewer bits.
_FALCON_ATTN_OUTPUT: dict[str, tuple[Rule, ...]] = {"Q3_K_L": ((always, _T.Q4_K),)}
_FALCON_FFN_DOWN: dict[str, tuple[Rule, ...]] = {
    "Q3_K_L": ((always, _T.Q4_K),),
    "Q3_K_M": ((first_sixteenth, _T.Q5_K), (more_bits, _T.Q4_K)),
    "Q4_K_M": ((first_sixteenth, _T.Q6_K), (more_bits, _T.Q5_K)),
    "Q4_K_S": (),
}


def stock_mix_of(file_type: str, architecture: str) -> StockMix:
    """Return the mixture of a file type; types without one put the base type everywhere."""
    mixture = STOCK_MIXES.get(file_type, StockMix())
    if architecture != "falcon":
        return mixture
    changed = replace(mixture, ffn_down=_FALCON_FFN_DOWN.get(file_type, mixture.ffn_down))
    if mixture.lowest:
        return changed
    return replace(changed, attn_output=_FALCON_ATTN_OUTPUT.get(file_type, ()))
