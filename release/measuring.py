"""What is measured of a release, and what is computed of it: divergence from the reference, where tokens go, memory.

Each measurement of a file is a step of its own: a file that did not change is not read again.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..formats.errors import EngineError, ReleaseError
from ..jobs.listener import SILENT, Listener
from ..jobs.loading import LoadRequest
from .ledger import Ledger, digest
from .making import Made, texts_of
from .manifest import Evaluation, FileSpeed, Fit, Machine, Quality, Room, RoutesFacts, TextRoutes, parsed, plain
from .programs import versions
from .request import Request

if TYPE_CHECKING:
    from ..jobs.compare_report import BaseReport, VariantReport
    from ..merge.recipe import Recipe

LOGITS = "reference.logits"
# Tokens of each text that are followed through the routers.
ROUTED = 1024


@dataclass(frozen=True)
class Measured:
    """The reference's own numbers, and quality and speed of each file."""

    base: dict[str, Any]
    quality: dict[Path, Quality]
    speed: dict[Path, FileSpeed]


@dataclass(frozen=True)
class Measurer:
    """The measurements of one release."""

    request: Request
    folder: Path
    work: Path
    ledger: Ledger
    reference: Made
    listener: Listener = SILENT

    def _inputs(self, paths: Sequence[Path]) -> str:
        request = self.request
        hashes = [self.ledger.sha256(path) for path in (*self.reference.paths, *paths)]
        texts = texts_of(request.texts, self.ledger)
        return digest(["measure", hashes, texts, request.n_ctx, request.n_chunk, versions()])

    def _kept(self, steps: dict[Path, tuple[str, str]]) -> dict[Path, Any]:
        """Return what is known of each file; without speed it is not enough where speed is asked for."""
        known = {path: self.ledger.kept(step, inputs) for path, (step, inputs) in steps.items()}
        lacks = "generated" if self.request.speed else "prompt"
        return {path: found if found and lacks in found["speed"] else None for path, found in known.items()}

    def compare(self, files: Sequence[Made]) -> Measured:
        """Read the reference once, then each file that is not measured yet."""
        steps = {made.path: (f"measure {self._name(made.path)}", self._inputs(made.paths)) for made in files}
        of_base = self._inputs([])
        base = self.ledger.kept("measure reference", of_base)
        kept = self._kept(steps)
        missing = [path for path, found in kept.items() if found is None]
        if missing or base is None:
            self._read(missing, steps, of_base, base is not None)
            base = self.ledger.kept("measure reference", of_base)
            kept = self._kept(steps)
        quality = {path: parsed(Quality, found["quality"], path.name) for path, found in kept.items()}
        speed = {path: parsed(FileSpeed, found["speed"], path.name) for path, found in kept.items()}
        return Measured(base, quality, speed if self.request.speed else {})

    def _name(self, path: Path) -> str:
        """Return what tells a file from all others, of other publishers too: those often have our names."""
        return path.name if path.parent == self.folder else str(path.resolve())

    def _read(self, missing: Sequence[Path], steps: dict[Path, tuple[str, str]], of_base: str, has_base: bool) -> None:
        from ..jobs import compare
        from ..jobs.compare_report import BaseReport

        logits = self.work / LOGITS
        stored = has_base and logits.is_file()
        if not stored:
            # What was read in part is read anew: the noise floor and the choices of experts are of all of it.
            for path in self.work.glob(f"{LOGITS}*"):
                path.unlink()

        def found(report: "BaseReport | VariantReport") -> None:
            if isinstance(report, BaseReport):
                if not has_base:
                    self.ledger.done("measure reference", of_base, base_facts(report, logits))
                return
            step, inputs = steps[report.path]
            self.ledger.done(step, inputs, {"quality": plain(quality_of(report)), "speed": plain(speed_of(report))})

        request = compare.Request(
            self.reference.path,
            tuple(missing),
            tuple((text.name, text.path) for text in self.request.texts),
            n_ctx=self.request.n_ctx,
            n_chunk=self.request.n_chunk,
            base_logits=logits if stored else None,
            save_logits=None if stored else logits,
            speed=self.request.speed,
            load=self.request.load,
        )
        compare.run(compare.prepare(request), self.listener, found)

    def routes(self, recipe: "Recipe | None") -> RoutesFacts | None:
        """Follow the tokens of each text through the reference; None for a model without experts."""
        from ..jobs import routes

        inputs = digest(
            [
                "routes",
                [self.ledger.sha256(path) for path in self.reference.paths],
                texts_of(self.request.texts, self.ledger),
                [expert.name for expert in recipe.experts] if recipe else None,
                versions(),
            ]
        )
        kept = self.ledger.kept("routes", inputs)
        if kept is None:
            reports = {
                text.name: routes.run(
                    routes.prepare(
                        routes.Request(self.reference.path, file=text.path, n_token=ROUTED, load=self.request.load)
                    ),
                    self.listener,
                )
                for text in self.request.texts
            }
            one = next(iter(reports.values()))
            experts = tuple(expert.name for expert in recipe.experts) if recipe else one.experts
            texts = tuple(
                TextRoutes(
                    name,
                    len(report.texts),
                    tuple(map(float, report.shares.mean(axis=0))),
                    tuple(tuple(map(float, row)) for row in report.shares),
                )
                for name, report in reports.items()
            )
            kept = self.ledger.done("routes", inputs, plain(RoutesFacts(experts, tuple(map(int, one.layers)), texts)))
        return parsed(RoutesFacts, kept, "routes")


def base_facts(report: "BaseReport", logits: Path) -> dict[str, Any]:
    """Return what is kept of the reference, whose predictions were just stored."""
    from ..measure.logits_file import read_layout

    layout = read_layout(logits)
    counts = {"n_chunk": layout.n_chunk, "n_token": layout.n_chunk * layout.n_scored}
    return {"ppl": report.ppl, "noise_floor": report.noise_floor} | counts


def quality_of(report: "VariantReport") -> Quality:
    """Return what is kept of a measured file."""
    found = report.divergence.as_json()
    return Quality(
        ppl=found["ppl"]["q"],
        ppl_error=found["ppl"]["q_error"],
        kld=found["kld"]["mean"],
        kld_error=found["kld"]["mean_error"],
        same_top=found["same_top"]["value"],
        same_top_error=found["same_top"]["error"],
        kld_p99=found["kld"]["p99"],
        routing=report.routing.value if report.routing else None,
        kld_by_text={name: one.kld.value for name, one in report.texts.items()},
    )


def speed_of(report: "VariantReport") -> FileSpeed:
    """Return the tokens a second of a measured file."""
    return FileSpeed(report.prompt_per_second, report.generated_per_second)


def evaluations_of(paths: Sequence[Path], files: Sequence[Made]) -> tuple[Evaluation, ...]:
    """Return the scores of `eval --json`. Raises ReleaseError for what is none, and for one of another model."""
    from ..jobs.eval import scores_of

    names = {made.path.name.removesuffix(".gguf") for made in files}
    found = []
    for path in paths:
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            model, scores = document["model_name"], scores_of(document)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ReleaseError(f"{path}: not what eval --json prints: {error}") from None
        if model not in names:
            raise ReleaseError(f"{path}: is of {model}, which is no file of this release: {', '.join(sorted(names))}")
        found += [Evaluation(model, one.alias, one.n_shot, one.metric, one.value, one.error) for one in scores]
    return tuple(found)


def memory_of(path: Path, contexts: Sequence[int]) -> tuple[Room, ...]:
    """Return the memory that a file needs with each context that it was trained for, computed from its header.

    Once all on the CPU, once with everything but the experts on one GPU.
    """
    from ..formats.gguf_file import read_gguf
    from ..runner.load_options import LoadOptions
    from ..runner.placing.memory import CPU, EXPERTS, is_expert, predict, read_facts

    facts = read_facts(read_gguf(path))
    has_experts = any(map(is_expert, facts.tensors))
    found = []
    for n_ctx in contexts:
        if facts.n_ctx_train and n_ctx > facts.n_ctx_train:
            continue
        alone = predict(facts, LoadOptions(n_ctx=n_ctx, n_gpu_layers=0, devices=()), [])[CPU].total
        shared = None
        if has_experts:
            options = LoadOptions(n_ctx=n_ctx, devices=("GPU0",), tensor_overrides=((EXPERTS, CPU),))
            shared = predict(facts, options, ["GPU0"])
        found.append(Room(n_ctx, alone, *((shared[CPU].total, shared["GPU0"].total) if shared else (None, None))))
    return tuple(found)


def fits_of(path: Path, machines: Sequence[Machine]) -> tuple[Fit, ...]:
    """Return how a file runs on usual machines: the longest context, up to the trained one, and llama.cpp's flags."""
    from ..formats.gguf_file import read_gguf
    from ..runner.load_options import LoadOptions
    from ..runner.placing.devices import Device
    from ..runner.placing.memory import predict, read_facts
    from ..runner.placing.placement import HYPOTHETICAL, largest_context, plan, rank
    from ..runner.placing.reasons import flags

    facts = read_facts(read_gguf(path))
    found = []
    for machine in machines:
        devices = [Device("CPU", "cpu", machine.ram_given, machine.ram)]
        if machine.vram:
            devices.append(Device("GPU0", "gpu", machine.vram_given, machine.vram, HYPOTHETICAL))
        n_ctx = largest_context(facts, rank(devices), LoadOptions(), predict)
        try:
            placement = plan(facts, devices, LoadOptions(n_ctx=n_ctx)) if n_ctx else None
        except EngineError:
            placement = None
        if placement is None:
            found.append(Fit(machine.name, False))
        else:
            found.append(Fit(machine.name, True, placement.n_ctx, tuple(flags(placement))))
    return tuple(found)


def speed_machine(load: LoadRequest) -> tuple[str, int]:
    """Return in words what machine a stopwatch ran on, and how many threads computed."""
    from ..runner.limits import system_memory
    from ..runner.placing.devices import list_devices
    from ..runner.threads import best_thread_count

    words = [processor(), f"{system_memory()[1] / 2**30:.0f} GiB of memory"]
    devices = [device for device in list_devices() if device.offloads]
    used = [device for device in devices if load.devices is None or device.name in load.devices]
    words += [device.description or device.name for device in used] or ["no GPU"]
    return ", ".join(words), load.n_threads or best_thread_count()


def processor() -> str:
    """Return what the system calls the processor."""
    import platform

    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    return platform.processor() or platform.machine()
