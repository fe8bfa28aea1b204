"""--target-fit: the largest mix that the planner of placements puts into given memory, and no larger one."""

import json
from pathlib import Path

import pytest
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.jobs.fitting import largest_that_fits
from moe_gguf.jobs.purse import NEAREST, purse_of
from moe_gguf.quantize.choices import MixOptions
from moe_gguf.quantize.file_types import parse_file_type
from moe_gguf.quantize.sensitivity import Sensitivity
from moe_gguf.quantize.stock_policy import stock
from moe_gguf.quantize.variants import plan_variants, stored_in_source
from moe_gguf.writer.gguf_source import plan_from_gguf

from ..command import moe_gguf
from ..header_only import MISTRAL_4X7B, entries, fields, write_header_only

ROLES = {"ATTN_V": 0.125, "OUTPUT": 0.031, "FFN_DOWN": 0.029, "FFN_UP": 0.025, "FFN_GATE": 0.015}
ROLES |= {"ATTN_OUTPUT": 0.011, "ATTN_K": 0.011, "ATTN_Q": 0.01, "TOKEN_EMBD": 0.004}
BY_KIND = {role: {"symmetric": nats / 4, "asymmetric": nats} for role, nats in ROLES.items()}
G = 1024**3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_header_only(
        tmp_path_factory.mktemp("m") / "4x7B-BF16.gguf", fields(MISTRAL_4X7B), entries(MISTRAL_4X7B)
    )


@pytest.fixture(scope="module")
def sensitivity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("s") / "s.json"
    path.write_text(json.dumps(Sensitivity("4x7B", "text", BY_KIND).as_json()))
    return path


@pytest.mark.parametrize(("vram", "ram"), [((), 16 * G), ((8 * G,), 12 * G), ((6 * G, 6 * G), 8 * G)])
def test_it_fits_and_more_memory_holds_more(vram: tuple[int, ...], ram: int, model: Path, sensitivity: Path) -> None:
    plan = plan_from_gguf(read_gguf(model))
    mixes = [stock(parse_file_type(name)) for name in NEAREST]
    variants = plan_variants(plan, stored_in_source, mixes, MixOptions())[1]
    purse = purse_of(sensitivity, variants, sum(tensor.n_weights for tensor in plan.tensors))
    found = largest_that_fits(purse, vram, ram)
    assert 0.75 * (sum(vram) + ram) < found < sum(vram) + ram
    assert found < largest_that_fits(purse, vram, ram + G) <= found + 1.5 * G


def test_words_for_memory(model: Path, sensitivity: Path) -> None:
    asked = ("quantize", model, "--sensitivity", sensitivity, "--dry-run", "--json", "-q", "--target-fit")
    both, alone = (json.loads(moe_gguf(*asked, words).stdout)["outputs"][0] for words in ("8G+12G", "16G"))
    assert 14e9 < both["bytes"] < 21e9 and 12e9 < alone["bytes"] < 17e9
    assert both["type"].endswith("_X") and both["budget"]["bytes"] - both["bytes"] < 40e6
    none = moe_gguf(*asked, "1G")
    assert none.status == 1 and "does not run in 1.07 GB with a context of" in none.stderr
