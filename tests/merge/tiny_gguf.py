"""Tiny GGUF files of the cases, made by the project's own conversion."""

from pathlib import Path

from moe_gguf.convert.build_plan import build_plan
from moe_gguf.convert.outtype import choose_entries, file_type_field
from moe_gguf.formats.checkpoint import Checkpoint, open_checkpoint
from moe_gguf.merge.gates import Gates
from moe_gguf.merge.open import open_recipe
from moe_gguf.merge.recipe import read_recipe
from moe_gguf.writer.partial import Output
from moe_gguf.writer.write import write

from .cases import CASES, gates_of, write_case


def convert(checkpoint: Checkpoint, path: Path, outtype: str = "f32") -> Path:
    """Write a checkpoint as GGUF."""
    plan = build_plan(checkpoint)
    plan = plan.with_fields(file_type_field(plan, outtype))
    write(plan, [Output(path, plan.fields, choose_entries(plan, outtype), outtype)])
    return path


def write_gguf_of(folder: Path, name: str, outtype: str = "f32", dense: bool = False) -> Path:
    """Write a case's merge, or its base alone, as GGUF."""
    case = CASES[name]
    (folder / "models").mkdir(exist_ok=True)
    recipe = read_recipe(write_case(folder / "models", case))
    if dense:
        return convert(open_checkpoint(folder / "models" / "base"), folder / "base.gguf", outtype)
    every = gates_of(case)
    shared = every[:, case.n_expert :] if recipe.shared_experts else None
    return convert(open_recipe(recipe, Gates(every[:, : case.n_expert], shared)), folder / "merge.gguf", outtype)
