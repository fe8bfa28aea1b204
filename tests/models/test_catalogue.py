"""The catalogue: what ships in models.toml is what was published, and each mistake is named with its line."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moe_gguf.formats.errors import CatalogueError
from moe_gguf.merge import recipe as merge_recipe
from moe_gguf.models.catalogue import RECIPE_KEYS, locate_keys, nearest_first, read_catalogue

SHIPPED = Path(__file__).parent.parent.parent / "models.toml"


def written(folder: Path, text: str) -> Path:
    """Write a catalogue and return its path."""
    path = folder / "models.toml"
    path.write_text(text, encoding="utf-8")
    return path


def mixtral_params(n_expert: int) -> int:
    """Return the parameters of a mixture of Mistral-7B's shape, from its config.json."""
    n_embd, n_ff, n_layer, n_vocab, n_kv = 4096, 14336, 32, 32000, 1024
    attention = 2 * n_embd * n_embd + 2 * n_embd * n_kv
    experts = n_expert * 3 * n_embd * n_ff + n_expert * n_embd
    return 2 * n_vocab * n_embd + n_embd + n_layer * (attention + experts + 2 * n_embd)


def test_the_shipped_catalogue_is_what_was_published() -> None:
    catalogue = read_catalogue(SHIPPED)
    assert list(catalogue.models) == [
        *("smolbruce-4x135m", "burningbruce-005", "cognitivefusion-4x7b", "mixtral-8x7b-instruct")
    ]
    assert catalogue.model().name == "smolbruce-4x135m"
    bruce, fusion = catalogue.models["burningbruce-005"], catalogue.models["cognitivefusion-4x7b"]
    assert (bruce.license, bruce.language, bruce.tags) == ("apache-2.0", ("en",), ("merge", "moe"))
    assert {result.task: (result.n_shot, result.metric, result.value) for result in bruce.results} == {
        "ARC-Challenge": (25, "acc_norm", 72.01),
        "HellaSwag": (10, "acc_norm", 88.31),
        "MMLU": (5, "acc", 64.76),
        "TruthfulQA": (0, "mc2", 67.27),
        "Winogrande": (5, "acc", 83.35),
        "GSM8K": (5, "acc", 71.49),
    }
    assert f"{bruce.average:.2f}" == "74.53"
    assert fusion.average is None
    assert bruce.prompts_by == fusion.prompts_by == "moe-gguf"
    assert bruce.n_params == fusion.n_params == mixtral_params(4)
    mixtral = catalogue.models["mixtral-8x7b-instruct"]
    assert (mixtral.recipe, mixtral.n_params) == (None, mixtral_params(8))
    assert mixtral.hub == "mistralai/Mixtral-8x7B-Instruct-v0.1"


def test_the_shipped_recipes_are_recipes() -> None:
    assert RECIPE_KEYS == merge_recipe.RECIPE_KEYS
    experts = {}
    for model in read_catalogue(SHIPPED).models.values():
        if model.recipe:
            recipe = merge_recipe.recipe_from_table(model.name, model.recipe, model.folder, model.where)
            experts[model.name] = [str(recipe.base_model), *(str(one.source_model) for one in recipe.experts)]
    assert experts["burningbruce-005"] == [
        "leveldevai/TurdusBeagle-7B",
        "leveldevai/TurdusBeagle-7B",
        "udkai/Turdus",
        "nfaheem/Marcoroni-7b-DPO-Merge",
        "Toten5/Marcoroni-neural-chat-7B-v2",
    ]
    assert experts["cognitivefusion-4x7b"] == [
        "SanjiWatsuki/Loyal-Macaroni-Maid-7B",
        "cognitivecomputations/dolphin-2.6-mistral-7b",
        "cognitivecomputations/dolphin-2.6-mistral-7b",
        "SanjiWatsuki/Silicon-Maid-7B",
        "NeuralNovel/Panda-7B-v0.1",
    ]
    base, *demo = experts["smolbruce-4x135m"]
    for expert in demo:
        model, _, adapter = expert.partition("+")
        assert model == base
        assert (SHIPPED.parent / adapter / "adapter_config.json").is_file()


def test_defaults_and_paths(tmp_path: Path) -> None:
    path = written(tmp_path, '[models.tiny]\npath = "weights"\nlanguage = "de"\n')
    catalogue = read_catalogue(path)
    model = catalogue.models["tiny"]
    assert (model.title, model.path, model.output) == ("tiny", tmp_path / "weights", tmp_path / "gguf" / "tiny")
    assert (model.language, model.where) == (("de",), f"{path}:1")
    with pytest.raises(CatalogueError, match=r"no model named.*known: tiny"):
        catalogue.model()
    with pytest.raises(CatalogueError, match="no model 'tony'"):
        catalogue.model("tony")


BROKEN = {
    "not TOML": ('default = "x"\n\n[models.x]\npath =\n', 4, "Invalid value"),
    "text that does not end": ('default = "x\n', 1, "character"),
    "unknown key at the top": ('[models.x]\npath = "a"\n[modles.y]\n', 3, "did you mean 'models'"),
    "unknown key of a model": ('[models.x]\npath = "a"\n\nlicence = "mit"\n', 4, "did you mean 'license'"),
    "unknown key of a recipe": ('[models.x]\nbase_model = "a"\nexpert = []\n', 3, "did you mean 'experts'"),
    "a key like no other": ('[models.x]\npath = "a"\nzzz = 1\n', 3, "known: title, path, hub"),
    "unknown key of a result": (
        '[models.x]\npath = "a"\n[[models.x.results]]\ntask = "t"\nshots = 5\n',
        5,
        "did you mean 'n_shot'",
    ),
    "a result without value": (
        '[models.x]\npath = "a"\n[[models.x.results]]\ntask="a"\nn_shot=1\nmetric="b"\nvalue=1\n'
        '[[models.x.results]]\ntask="a"\nn_shot=1\nmetric="b"\n',
        8,
        "result 2 of 'x' has no 'value'",
    ),
    "an inline result without value": (
        '[models.x]\npath = "a"\nresults = [\n  {task = "a", n_shot = 1, metric = "b"},\n]\n',
        3,
        "has no 'value'",
    ),
    "results of another kind": ('[models.x]\npath = "a"\nresults = 5\n', 3, "must be a list of tables"),
    "wrong type": ('[models.x]\npath = "a"\n# why\nlicense = 5\n', 4, "'license' must be a string, not int 5"),
    "wrong list": ('[models.x]\npath = "a"\ntags = ["a", 5]\n', 3, "a string or a list of strings"),
    "wrong number": ('[models.x]\npath = "a"\nn_params = -1\n', 3, "a whole number, 0 or more"),
    "truth is no number": ('[models.x]\npath = "a"\nn_params = true\n', 3, "a whole number"),
    "empty text": ('[models.x]\npath = " "\n', 2, "'path' must be a string"),
    "not a hub id": ('[models.x]\nhub = "https://example.org/x"\n', 2, "a hub id"),
    "unknown default": ('\ndefault = "y"\n[models.x]\npath = "a"\n', 2, "known: x"),
    "default is no text": ('default = ["x"]\n[models.x]\npath = "a"\n', 1, "not a model"),
    "no models": ("\n\n# nothing\n", 1, r"add one as \[models.NAME\]"),
    "models is no table": ("# a\nmodels = 5\n", 2, "one table per model"),
    "a model is no table": ("[models]\nx = 5\n", 1, "one table per model"),
    "no source": ('default = "x"\n[models.x]\ntitle = "X"\n', 2, "no source; add path, hub, or a recipe"),
    "two sources": ('[models.x]\npath = "a"\nhub = "a/b"\n', 3, "both 'path' and 'hub'"),
    "path and recipe": (
        '[models.x]\npath = "a"\ngate_mode = "hidden"\nbase_model = "b"\n',
        3,
        "both 'path' and 'gate_mode'",
    ),
    "recipe without base": ("[models.x]\n[[models.x.experts]]\n", 1, "has no 'base_model'"),
    "recipe without experts": ('[models.x]\nbase_model = "b"\n', 1, "has no 'experts'"),
    "name with a slash": ('[models."a/b"]\npath = "a"\n', 1, "may hold only letters"),
    "same output": (
        '[models.x]\npath = "a"\noutput = "o"\n[models.y]\npath = "b"\noutput = "o"\n',
        6,
        "'y' and 'x' have the same output folder",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_mistake_is_named_with_its_line(case: str, tmp_path: Path) -> None:
    text, line, message = BROKEN[case]
    path = written(tmp_path, text)
    with pytest.raises(CatalogueError, match=message) as raised:
        read_catalogue(path)
    assert str(raised.value).startswith(f"{path}:{line}: ")
    assert "\n" not in str(raised.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_bytes(b"default = '\xff'")
    with pytest.raises(CatalogueError, match="not UTF-8 at byte 11"):
        read_catalogue(tmp_path / "models.toml")
    with pytest.raises(CatalogueError, match="cannot be read"):
        read_catalogue(tmp_path / "none.toml")


def test_lines_are_found_past_strings_and_arrays_of_several_lines() -> None:
    text = """default = "x"  # [models.not]
text = '''
[models.not]
key = 1
'''
[models.x]
list = [
  "]", # ]
  [1, 2],
]
"quoted.key" = 1
a.b.c = 2
[[models.x.experts]]
one = 1
[models.x.experts.more]
two = 2
[[models.x.experts]]
one = 1
[ models . "x" . last ]
"""
    lines = locate_keys(text)
    model = ("models", "x")
    assert lines == {
        ("default",): 1,
        ("text",): 2,
        ("models",): 6,
        model: 6,
        (*model, "list"): 7,
        (*model, "quoted.key"): 11,
        (*model, "a"): 12,
        (*model, "a", "b"): 12,
        (*model, "a", "b", "c"): 12,
        (*model, "experts"): 13,
        (*model, "experts", 0): 13,
        (*model, "experts", 0, "one"): 14,
        (*model, "experts", 0, "more"): 15,
        (*model, "experts", 0, "more", "two"): 16,
        (*model, "experts", 1): 17,
        (*model, "experts", 1, "one"): 18,
        (*model, "last"): 19,
    }


@given(data=st.data())
def test_a_damaged_catalogue_is_read_or_refused_with_a_line(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = SHIPPED.read_text(encoding="utf-8")
    start = data.draw(st.integers(0, len(text)))
    length = data.draw(st.integers(0, 60))
    patch = data.draw(st.text(st.sampled_from('[]="\n.a5,{}#'), max_size=4))
    path = written(tmp_path_factory.getbasetemp(), text[:start] + patch + text[start + length :])
    try:
        read_catalogue(path)
    except CatalogueError as error:
        line = int(str(error).removeprefix(f"{path}:").partition(":")[0])
        assert 1 <= line <= len(path.read_text().splitlines())


def test_nearest_first() -> None:
    assert nearest_first("mixtrl", ("smolbruce", "mixtral")) == "mixtral, smolbruce"
