"""Decides every tensor's type: model facts, tensors, a mix and options come in, a choice per tensor goes out.

A mix is a policy that is handed over; llama.cpp's own are in `stock_policy.py`, and with one of those the choices equal
those of its quantizer (src/llama-quant.cpp).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from gguf import GGMLQuantizationType

from ..models.tensor_roles import Role, reason_to_keep, role_of
from ..models.tensor_types import Shaped, TensorShape, is_quantized
from .choices import MixOptions, TypeChoice
from .facts import ModelFacts
from .fallback import fitting_type
from .file_types import FileType
from .pruning import prune, writing_order
from .refusals import refuse_garbage, refuse_requantizing, refuse_unwritable

Policy = Callable[[ModelFacts, TensorShape], GGMLQuantizationType]


@dataclass(frozen=True)
class Mixed:
    """What a policy may know before it sees the first tensor; `n_attn_v` counts the value matrices."""

    facts: ModelFacts
    has_imatrix: bool
    options: MixOptions
    n_attn_v: int


@dataclass(frozen=True)
class Mix:
    """A choice of types by a name of its own.

    `begin` gives the policy for one model: called with each tensor that may be quantized, in the order of writing, it
    returns the type that it should have. `file_type` is what the file says of itself (general.file_type), and its
    type that of tensors which nothing else is said of.
    """

    name: str
    file_type: FileType
    begin: Callable[[Mixed], Policy]


def by_table(name: str, file_type: FileType, types: Mapping[str, GGMLQuantizationType]) -> Mix:
    """Return the mix that gives each tensor the type of its name in a table, and others the file type's."""
    assert file_type.qtype is not None, f"{file_type.name} quantizes nothing"
    base = file_type.qtype
    return Mix(name, file_type, lambda _: lambda _, tensor: types.get(tensor.name, base))


def choose_types(
    facts: ModelFacts,
    tensors: Sequence[Shaped],
    mix: Mix,
    options: MixOptions | None = None,
    has_imatrix: bool | AbstractSet[str] = False,
) -> list[TypeChoice]:
    """Choose every tensor's type and make sure that each can be written.

    `has_imatrix` may be the set of source names that the importance matrix knows. Returns the choices in the order
    in which llama.cpp writes them, pruned layers left out and the others renumbered. Raises PlanError for what
    cannot be planned or requantizes without permission, ImatrixError for what is garbage without a matrix.
    """
    options = options or MixOptions()
    choices = plan_types(facts, tensors, mix, options, bool(has_imatrix))
    refuse_unwritable(choices)
    if not options.allow_requantize:
        refuse_requantizing(choices)
    refuse_garbage(choices, mix.name, has_imatrix)
    return choices


def plan_types(
    facts: ModelFacts,
    tensors: Sequence[Shaped],
    mix: Mix,
    options: MixOptions,
    has_imatrix: bool,
) -> list[TypeChoice]:
    """Choose every tensor's type as llama.cpp's dry run does: without asking whether it can be written."""
    kept = _tensors_to_write(tensors, options)
    base = mix.file_type.qtype
    if base is None:
        return [_keep(tensor, source_name, "copied") for tensor, source_name in kept]
    names = [tensor.name for tensor, _ in kept]
    known = replace(facts, tied="output.weight" not in names)
    mixed = Mixed(known, has_imatrix, options, sum(role_of(name) is Role.ATTN_V for name in names))
    patterns = [(re.compile(pattern), qtype) for pattern, qtype in options.tensor_types]
    chooser = _Chooser(known, mix.name, base, mix.begin(mixed), options, patterns)
    return [chooser.choose(tensor, source_name) for tensor, source_name in kept]


def _tensors_to_write(tensors: Sequence[Shaped], options: MixOptions) -> list[tuple[TensorShape, str]]:
    """Return the output's tensors in order, under their new names, each with its name in the source."""
    by_name = {tensor.name: tensor for tensor in tensors}
    ordered = writing_order(by_name)
    renamed = {name: name for name in ordered}
    if options.prune_layers:
        renamed, _ = prune(ordered, options.prune_layers)
    if options.keep_order:
        position = {name: i for i, name in enumerate(by_name)}
        renamed = dict(sorted(renamed.items(), key=lambda item: position[item[1]]))
    return [(TensorShape(new, by_name[old].shape, by_name[old].qtype), old) for new, old in renamed.items()]


def _keep(tensor: TensorShape, source_name: str, reason: str) -> TypeChoice:
    qtype = tensor.qtype
    return TypeChoice(tensor.name, qtype, qtype, reason, True, source_name, qtype, tensor.shape)


@dataclass(frozen=True)
class _Chooser:
    """A mix at work on one model: what the user said comes first, then the policy, then what fits the rows."""

    facts: ModelFacts
    name: str
    base: GGMLQuantizationType
    policy: Policy
    options: MixOptions
    patterns: Sequence[tuple[re.Pattern[str], GGMLQuantizationType]]

    def choose(self, tensor: TensorShape, source_name: str) -> TypeChoice:
        """Choose the type of the next tensor."""
        if tensor.name == "output.weight" and self.options.leave_output_tensor:
            return _keep(tensor, source_name, "--leave-output-tensor")
        if kept := reason_to_keep(tensor, self.facts.architecture):
            return _keep(tensor, source_name, f"kept: {kept}")
        given = self._given_outright(tensor.name)
        wanted, reason = given or self._recommended(tensor)
        qtype = wanted if given else fitting_type(tensor.name, tensor.shape[0], wanted)
        if qtype != wanted:
            reason += f"; rows of {tensor.shape[0]} do not fit {wanted.name}"
        return TypeChoice(tensor.name, qtype, wanted, reason, False, source_name, tensor.qtype, tensor.shape)

    def _given_outright(self, name: str) -> tuple[GGMLQuantizationType, str] | None:
        """Return the type of a tensor for which neither the mixture nor the fallback is asked, and why."""
        options, role = self.options, role_of(name)
        # The embeddings per layer are a large table of their own: --tensor-type may name them.
        exempt = name == "per_layer_token_embd.weight" and self._named(name) is not None
        if role is Role.TOKEN_EMBD and options.token_embedding_type is not None and not exempt:
            return options.token_embedding_type, "--token-embedding-type"
        if role is Role.OUTPUT and options.output_tensor_type is not None:
            return options.output_tensor_type, "--output-tensor-type"
        return None if is_quantized(self.base) else (self.base, self.name)

    def _recommended(self, tensor: TensorShape) -> tuple[GGMLQuantizationType, str]:
        """Return the type before the fallback for odd row lengths, and why."""
        if (named := self._named(tensor.name)) is not None:
            return named, "--tensor-type"
        if self.options.pure:
            return self.base, "--pure"
        wanted = self.policy(self.facts, tensor)
        return wanted, self.name if wanted == self.base else f"{self.name}: {role_of(tensor.name).value}"

    def _named(self, name: str) -> GGMLQuantizationType | None:
        return next((qtype for pattern, qtype in self.patterns if pattern.search(name)), None)
