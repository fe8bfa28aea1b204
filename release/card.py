"""README.md, the model card: a manifest comes in, Markdown with the Hub's front matter goes out.

The text is a Jinja template (templates/card.md.jinja, or the user's own), which sees the manifest and the filters
below. A number reaches the page through one of the filters, from the manifest, or not at all.

Long because the filters are the vocabulary of one page.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..formats.errors import ReleaseError
from . import plots
from .manifest import ExpertFacts, Judgement, Manifest, ReleasedFile

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

TEMPLATE = Path(__file__).parent / "templates" / "card.md.jinja"
HUB = "https://huggingface.co/"
# What is said of a file, by how often it agrees with the reference on the likeliest token.
JUDGEMENTS = (
    Judgement(0.98, "hardly to be told from the reference"),
    Judgement(0.95, "very close"),
    Judgement(0.9, "close"),
    Judgement(0.8, "noticeably worse"),
    Judgement(0.0, "only for want of memory"),
)
# The smallest file that is said to be at least this good is the one to take first.
GOOD_ENOUGH = "close"
LONGEST_PROMPT = 90


def card_text(manifest: Manifest, recipe: str = "", template: Path | None = None) -> str:
    """Return the card; `recipe` is the text of the manifest's recipe. Raises ReleaseError for a template that fails."""
    import jinja2

    environment = jinja2.Environment(  # noqa: S701 (Markdown, not HTML)
        undefined=jinja2.StrictUndefined, keep_trailing_newline=False
    )
    environment.filters |= {**FILTERS, **_of_speed(manifest)}
    path = template or TEMPLATE
    try:
        text = environment.from_string(path.read_text(encoding="utf-8")).render(**_context(manifest, recipe))
    except OSError as error:
        raise ReleaseError(f"{path}: the template cannot be read: {error.strerror}") from None
    except (jinja2.TemplateError, UnicodeDecodeError, TypeError, ValueError, AttributeError) as error:
        line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise ReleaseError(f"{path}{line}: the template of the card fails: {error}") from None
    return _tidied(text)


def _tidied(text: str) -> str:
    """Return Markdown with one empty line between blocks and none inside of lists and tables, front matter apart."""
    front, matter, body = text.strip().partition("\n---\n")
    lines: list[str] = []
    fenced, before = False, ""
    waiting = [line if line.strip() else "" for line in body.split("\n")]
    for number, line in enumerate(waiting):
        fence = line.startswith("```")
        if fenced or (fence and before == "html"):
            lines.append(line)
            fenced = fenced != fence
            continue
        if not line:
            continue
        kind = "fence" if fence else _kind(line, before, waiting[number + 1 :])
        if lines and (kind != before or kind in ("heading", "text", "fence", "new table")):
            lines.append("")
        lines.append(line.rstrip())
        fenced, before = fence, "table" if kind == "new table" else kind
    return front + matter + "\n".join(["", *lines]) + "\n"


def _kind(line: str, before: str, following: list[str]) -> str:
    """Return what a line of Markdown is part of."""
    if line.startswith("|"):
        under = next((one for one in following if one), "")
        return "new table" if before == "table" and under.startswith("|:") else "table"
    if line.startswith("#"):
        return "heading"
    return "list" if line.startswith("- ") else "text"


def _context(manifest: Manifest, recipe: str) -> dict[str, Any]:
    files = sorted(manifest.files, key=lambda file: file.bytes)
    names = {other.name for other in manifest.others}
    first = first_choice(manifest)
    rooms = [{room.n_ctx for room in file.room} for file in files]
    contexts = sorted(set.intersection(*rooms)) if rooms else []
    split = [room.n_ctx for room in files[0].room if room.split_vram is not None] if files else []
    return {
        "manifest": manifest,
        "front_matter": front_matter(manifest),
        "files": files,
        "words": words_of(manifest),
        "first": first,
        "example": first or files[len(files) // 2],
        "sharded": next((file for file in files if len(file.files) > 1), None),
        "routed": any(file.quality and file.quality.routing is not None for file in files),
        "texts": _listed([text.name for text in manifest.reference.texts]) if manifest.reference else "",
        "contexts": contexts,
        "split_context": (8192 if 8192 in split else split[-1]) if split else None,
        "machines": manifest.machines if all(file.fits for file in files) else (),
        "pictures": {"banner": plots.BANNER, "sizes": plots.SIZES, "routes": plots.ROUTES},
        "has": names.__contains__,
        "recipe": recipe.strip(),
        "against": manifest.recipe.file.name if manifest.recipe else manifest.source.name,
        "again": again(manifest),
    }


def front_matter(manifest: Manifest) -> str:
    """Return the metadata of the page, as the Hub reads it, in YAML."""
    from huggingface_hub import ModelCardData

    model = manifest.model
    results = [
        *(_result(one.task, one.metric, one.value, f"{one.n_shot}-shot, as published") for one in model.published),
        *(
            _result(one.task, one.metric, round(100 * one.value, 2), f"{one.n_shot}-shot, measured on {one.model}")
            for one in manifest.evaluations
        ),
    ]
    tags = dict.fromkeys(
        ("gguf", *(("moe",) if model.n_expert else ()), *(("merge",) if manifest.recipe else ()), *model.tags)
    )
    imatrix = bool(manifest.calibration and manifest.calibration.imatrix)
    data = ModelCardData(
        base_model=list(model.base_models) or None,
        base_model_relation=model.base_model_relation,
        quantized_by=model.quantized_by,
        license=model.license,
        language=list(model.language) or None,
        library_name="gguf",
        pipeline_tag="text-generation",
        tags=[*tags, *(["imatrix"] if imatrix else [])],
        datasets=list(model.datasets) or None,
        model_name=model.name if results else None,
        eval_results=results or None,
    )
    return data.to_yaml(line_break="\n").strip()


def _result(task: str, metric: str, value: float, how: str) -> "EvalResult":
    """Return a result in percent as the Hub's `model-index` has it."""
    from huggingface_hub import EvalResult

    return EvalResult("text-generation", task.lower(), task, metric, value, metric_name=f"{metric}, {how}")


def words_of(manifest: Manifest) -> dict[str, str]:
    """Return what is said of each file: by its agreement with the reference, and whether another beats it."""
    every = [file for file in (*manifest.files, *manifest.against) if file.quality]
    first = first_choice(manifest)
    found = {}
    for file in (*manifest.files, *manifest.against):
        said = []
        if file.quality:
            said.append(_judged(file.quality.same_top, manifest.judgements))
            better = [
                one
                for one in every
                if one.quality and one.bytes < file.bytes and one.quality.kld < file.quality.kld and one is not file
            ]
            if better:
                said.append(f"{_called(min(better, key=lambda one: one.bytes))} is smaller and closer")
        if first is not None and file.name == first.name:
            said.append("**take this one first**")
        found[file.name] = "; ".join(filter(None, said))
    return found


def _called(file: Any) -> str:
    return file.type if isinstance(file, ReleasedFile) else file.name


def _judged(same_top: float, judgements: tuple[Judgement, ...]) -> str:
    return next((one.words for one in judgements if same_top >= one.same_top), "")


def first_choice(manifest: Manifest) -> ReleasedFile | None:
    """Return the smallest file that is said to be good enough; None where nothing was measured or none is."""
    good = [one.same_top for one in manifest.judgements if one.words == GOOD_ENOUGH]
    fine = [file for file in manifest.files if file.quality and good and file.quality.same_top >= good[0]]
    return min(fine, key=lambda file: file.bytes, default=None)


def again(manifest: Manifest) -> str:
    """Return the command that makes the same files from what lies in the folder."""
    options, calibration = manifest.options, manifest.calibration
    named = "models.toml" in {other.name for other in manifest.others}
    recipe = manifest.recipe.file.name if manifest.recipe else manifest.source.name
    words = ["moe-gguf release", manifest.source.name if named else recipe]
    if manifest.recipe and manifest.recipe.gates:
        words.append(f"--gates {manifest.recipe.gates.name}")
    words.append(f"--types {','.join(options.types)}")
    if options.rounding == "imatrix" and calibration and calibration.imatrix:
        words.append(f"--imatrix {calibration.imatrix.name}")
    elif options.rounding == "calibrated":
        words.append("--rounding calibrated")
        words += [f"--calibration {text.name}" for text in (calibration.texts if calibration else ())]
    words += [f"--tensor-type {one}" for one in options.tensor_types]
    return " ".join(words)


def _listed(names: list[str]) -> str:
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def linked(repo: str | None, name: str) -> str:
    """Return a model's name, as a link where it is on the Hub."""
    return f"[{repo}]({HUB}{repo})" if repo else f"`{name}`"


def asked(expert: ExpertFacts) -> str:
    """Return what is routed to an expert: its prompts, one a line, shortened."""
    quoted = [_quoted(prompt) for prompt in expert.positive_prompts]
    quoted += [f"the text {name}" for name in expert.positive_texts]
    quoted += [f"not: {_quoted(prompt)}" for prompt in expert.negative_prompts]
    return "<br>".join(quoted)


def _quoted(prompt: str) -> str:
    import html

    text = " ".join(prompt.split())
    text = text if len(text) <= LONGEST_PROMPT else text[: LONGEST_PROMPT - 1].rstrip() + "…"
    return "“" + html.escape(text, quote=False).replace("|", "&#124;").replace("*", "&#42;").replace("_", "&#95;") + "”"


def number(value: float) -> str:
    """Return a whole number: 24,153,690,112."""
    return f"{value:,}"


def gigabytes(n_bytes: float) -> str:
    """Return bytes in GB of 10^9, as disks and the Hub count."""
    return f"{n_bytes / 1e9:.2f} GB"


def billions(count: float) -> str:
    """Return parameters in billions, or in millions below one."""
    return f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.0f} M"


def percent(share: float) -> str:
    """Return a share in percent with two digits, or more where these would be none."""
    return f"{100 * share:.2f} %"


def whole_percent(share: float) -> str:
    """Return a share in whole percent."""
    return f"{100 * share:.0f} %"


def nats(value: float) -> str:
    """Return a divergence, with four digits after the point."""
    return f"{value:.1e}" if 0 < value < 0.00005 else f"{max(value, 0):.4f}"


def two(value: float) -> str:
    """Return a number with two digits after the point."""
    return f"{value:.2f}"


def room(file: ReleasedFile, n_ctx: int) -> str:
    """Return the memory with so many tokens, all on the CPU."""
    return next((gigabytes(one.ram) for one in file.room if one.n_ctx == n_ctx), "")


def on_gpu(file: ReleasedFile, n_ctx: int) -> str:
    """Return the GPU's part of the memory, with the experts on the CPU."""
    found = next((one.split_vram for one in file.room if one.n_ctx == n_ctx), None)
    return "" if found is None else gigabytes(found)


FILTERS: Mapping[str, Callable[..., str]] = {
    "number": number,
    "gigabytes": gigabytes,
    "billions": billions,
    "percent": percent,
    "whole_percent": whole_percent,
    "nats": nats,
    "two": two,
    "linked": linked,
    "asked": asked,
    "room": room,
    "on_gpu": on_gpu,
    "path": quote,
}


def _of_speed(manifest: Manifest) -> dict[str, Callable[[ReleasedFile], str]]:
    def speed(file: ReleasedFile, what: str) -> str:
        found = manifest.speed.files.get(file.name) if manifest.speed else None
        value = getattr(found, what) if found else None
        return "" if value is None else two(value) if value < 10 else f"{value:.0f}"

    return {"reads": lambda file: speed(file, "prompt"), "writes": lambda file: speed(file, "generated")}
