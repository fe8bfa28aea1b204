"""Decides every tensor's type: model facts, tensors, a file type and options come in, a choice per tensor goes out.

The choices equal those of llama.cpp's quantizer (src/llama-quant.cpp); `mixtures.py` holds the policy itself.
"""

import re
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

from gguf import GGMLQuantizationType

from ..models.tensor_roles import Role, layer_in, reason_to_keep, role_of
from ..models.tensor_types import Shaped, TensorShape, is_quantized, row_fits
from .choices import RecipeOptions, TypeChoice
from .facts import ModelFacts
from .fallback import fitting_type
from .file_types import FileType
from .mixtures import Mixture, Place, mixture_of
from .pruning import prune, writing_order
from .refusals import refuse_garbage, refuse_requantizing, refuse_unwritable

_T = GGMLQuantizationType


def choose_types(
    facts: ModelFacts,
    tensors: Sequence[Shaped],
    file_type: FileType,
    options: RecipeOptions | None = None,
    has_imatrix: bool | AbstractSet[str] = False,
) -> list[TypeChoice]:
    """Choose every tensor's type and make sure that each can be written.

    `has_imatrix` may be the set of source names that the importance matrix knows. Returns the choices in the order
    in which llama.cpp writes them, pruned layers left out and the others renumbered. Raises PlanError for what
    cannot be planned or requantizes without permission, ImatrixError for what is garbage without a matrix.
    """
    options = options or RecipeOptions()
    choices = plan_types(facts, tensors, file_type, options, bool(has_imatrix))
    refuse_unwritable(choices)
    if not options.allow_requantize:
        refuse_requantizing(choices)
    refuse_garbage(choices, file_type.name, has_imatrix)
    return choices


def plan_types(
    facts: ModelFacts,
    tensors: Sequence[Shaped],
    file_type: FileType,
    options: RecipeOptions,
    has_imatrix: bool,
) -> list[TypeChoice]:
    """Choose every tensor's type as llama.cpp's dry run does: without asking whether it can be written."""
    kept = _tensors_to_write(tensors, options)
    if file_type.qtype is None:
        return [_keep(tensor, source_name, "copied") for tensor, source_name in kept]
    names = [tensor.name for tensor, _ in kept]
    recipe = _Recipe(
        facts=replace(facts, tied="output.weight" not in names),
        file_type=file_type.name,
        base=file_type.qtype,
        mixture=mixture_of(file_type.name, facts.architecture),
        options=options,
        patterns=[(re.compile(pattern), qtype) for pattern, qtype in options.tensor_types],
        has_imatrix=has_imatrix,
        n_attn_v=sum(role_of(name) is Role.ATTN_V for name in names),
    )
    return [recipe.choose(tensor, source_name) for tensor, source_name in kept]


def _tensors_to_write(tensors: Sequence[Shaped], options: RecipeOptions) -> list[tuple[TensorShape, str]]:
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


@dataclass
class _Recipe:
    """One file type at work on one model; counts the tensors of some roles as they pass, as llama.cpp does."""

    facts: ModelFacts
    file_type: str
    base: GGMLQuantizationType
    mixture: Mixture
    options: RecipeOptions
    patterns: Sequence[tuple[re.Pattern[str], GGMLQuantizationType]]
    has_imatrix: bool
    n_attn_v: int
    seen: dict[Role, int] = field(default_factory=dict)

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
        return None if is_quantized(self.base) else (self.base, self.file_type)

    def _recommended(self, tensor: TensorShape) -> tuple[GGMLQuantizationType, str]:
        """Return the type before the fallback for odd row lengths, and why."""
        if (named := self._named(tensor.name)) is not None:
            return named, "--tensor-type"
        if self.options.pure:
            return self.base, "--pure"
        role = role_of(tensor.name)
        wanted = self._by_policy(tensor, role)
        return wanted, self.file_type if wanted == self.base else f"{self.file_type}: {role.value}"

    def _named(self, name: str) -> GGMLQuantizationType | None:
        return next((qtype for pattern, qtype in self.patterns if pattern.search(name)), None)

    def _by_policy(self, tensor: TensorShape, role: Role) -> GGMLQuantizationType:
        """Return what the file type's mixture says."""
        sensitive = ("attn_q_a", "attn_q_b", "nextn.eh_proj")
        if self.facts.architecture == "glm5-next" and any(part in tensor.name for part in sensitive):
            return _T.Q8_0
        if role is Role.OUTPUT or (role is Role.TOKEN_EMBD and self.facts.tied):
            given = self.options.output_tensor_type
            return self._output_type(tensor.shape[0]) if given is None else given
        if self.file_type == "MXFP4_MOE":
            return _T.MXFP4 if self._is_expert(tensor, role) else _T.Q8_0
        place = self._place(tensor.name, role)
        wanted = next((qtype for holds, qtype in self.mixture.rules(role) if holds(place)), self.base)
        return wanted if self.mixture.lowest else self._attention_extras(role, wanted)

    def _output_type(self, row_length: int) -> GGMLQuantizationType:
        """Return the type of the output matrix, or of token embeddings that serve as such."""
        eight_bits = self.base == _T.Q8_0 or self.file_type == "MXFP4_MOE"
        if eight_bits or self.facts.architecture == "falcon" or not row_fits(row_length, self.base):
            return _T.Q8_0
        return self.mixture.output[0][1] if self.mixture.output else _T.Q6_K

    def _is_expert(self, tensor: TensorShape, role: Role) -> bool:
        stacked = len(tensor.shape) > 2 and tensor.shape[2] > 1
        if self.facts.architecture == "bailingmoe3":
            return stacked and role in (Role.FFN_UP, Role.FFN_GATE, Role.FFN_DOWN)
        return stacked

    def _place(self, name: str, role: Role) -> Place:
        """Return where a tensor stands: value matrices are counted, feed-forward layers are read off the name.

        Dense models and the lowest file types count the feed-forward tensors too.
        """
        if role not in (Role.ATTN_V, Role.FFN_DOWN, Role.FFN_GATE, Role.FFN_UP):
            return Place(self.facts, self.has_imatrix)
        index = self.seen.get(role, 0)
        self.seen[role] = index + 1
        if role is Role.ATTN_V:
            return Place(self.facts, self.has_imatrix, index, self.n_attn_v)
        if self.facts.n_expert > 1 and not self.mixture.lowest:
            index = layer_in(name, self.facts.n_layer)
        return Place(self.facts, self.has_imatrix, index, self.facts.n_layer)

    def _attention_extras(self, role: Role, wanted: GGMLQuantizationType) -> GGMLQuantizationType:
        """Raise keys and values where they are a small part of the model: 70B's shared heads, eight experts."""
        if role in (Role.ATTN_K, Role.ATTN_V) and self.facts.n_expert == 8:
            return _T.Q8_0
        if role is Role.ATTN_V and self.facts.seventy_b and wanted in (_T.Q3_K, _T.Q4_K):
            return _T.Q5_K
        return wanted
