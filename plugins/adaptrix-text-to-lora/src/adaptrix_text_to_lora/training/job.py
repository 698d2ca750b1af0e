"""A training run as its config has it: what is trained, on what, and what is written of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adaptrix import BoundAdapter, Problem, RefusedError, UsageError
from adaptrix.extend import Counted, Pipeline, atomic, base_model_at, errors_in, placement, require_apart
from adaptrix_text_to_lora.checkpoint import NAME, read_checkpoint, source_files
from adaptrix_text_to_lora.encoders import Encoder, require_width, scaled
from adaptrix_text_to_lora.encoding import embedded, named_encoder
from adaptrix_text_to_lora.hypernetwork import Hypernetwork
from adaptrix_text_to_lora.shape import Output, Shape
from adaptrix_text_to_lora.targets import Base, TargetModule, require_fit
from adaptrix_text_to_lora.training import curves, run_state
from adaptrix_text_to_lora.training.config import Config
from adaptrix_text_to_lora.training.files import Described, read_library, read_tasks
from adaptrix_text_to_lora.training.finetuning import FINE_TUNING, Objective, fine_tune
from adaptrix_text_to_lora.training.library import Library
from adaptrix_text_to_lora.training.loop import DIVERGED, State, Watch
from adaptrix_text_to_lora.training.published import FILES, CheckpointRecord, checkpoint_files
from adaptrix_text_to_lora.training.reconstruction import RECONSTRUCTION, reconstruct
from adaptrix_text_to_lora.training.run_state import RunState
from adaptrix_text_to_lora.training.tokens import prepared, require_readable

_HOLDS = (*FILES, run_state.NAME, curves.TABLE, curves.DRAWING)
_FIRST = 64  # numbers of a tensor that tell it from another

#: from a run's last ``state`` and who is to ``watch`` it, by these names, to its curve
Run = Callable[..., Tensor]


@dataclass(frozen=True)
class Job:
    """A run that is ready to begin. ``key``: what another has to share to go on where this one was."""

    hypernetwork: Hypernetwork
    record: CheckpointRecord
    run: Run
    key: str


@dataclass(frozen=True)
class Trained:
    """A run that is over: its folder, its curve, and the step that it went on from."""

    folder: Path
    curve: Tensor
    resumed: int


def train(config: Config, out: Path, *, force: bool, display: Counted) -> Trained:
    """Runs a config to its end, from where an earlier run of it was stopped, and writes the checkpoint into ``out``.

    The folder appears with the first state that is kept. ``force`` starts again. Raises :class:`AdaptrixError`; where
    the run diverges after a state was kept, the checkpoint is that of the last one.
    """
    _require_output(out, force)
    if config.start is not None:
        require_apart(out, source_files(config.start))
    with _job(config) as job:
        saved = RunState(out, job.key)
        if force:
            saved.remove()
        state = saved.read()
        begun = 0 if state is None else state.step
        with display("training", config.steps) as advance, _noting_saved(saved):
            advance(begun)
            curve = _watched(job, saved, state, config.save_every, advance)
        _publish(job, out, job.hypernetwork.state_dict(), curve)
    return Trained(out, curve, begun)


def _watched(
    job: Job, saved: RunState, state: State | None, every: int | None, advance: Callable[[int], object]
) -> Tensor:
    last = [state]

    def on_state(now: State) -> None:
        saved.write(now)
        last[0] = now

    try:
        return job.run(state=state, watch=Watch(every, on_state, advance))
    except RefusedError as error:
        if last[0] is None or error.problems[0].code != DIVERGED:
            raise
        _publish(job, saved.folder, dict(last[0].network), last[0].curve)
        found = f"the checkpoint of step {last[0].step} was kept"
        remedy = "Train on from it with `start`, or start over with --force."
        note = Problem("run-kept", str(saved.folder), found, remedy=remedy, severity="note")
        raise RefusedError([*error.problems, note]) from None


def _publish(job: Job, out: Path, tensors: dict[str, Tensor], curve: Tensor) -> None:
    """Puts a folder of checkpoint and curve in the place of the run's own, state and all, in one step: a run that is
    killed leaves no weights beside the settings of others."""
    with atomic.output(out, force=True, holds=_HOLDS) as work:
        work.mkdir()
        for name, data in checkpoint_files(job.hypernetwork.shape, tensors, job.record).items():
            (work / name).write_bytes(data)
        curves.write_curve(work, curve)


@contextmanager
def _noting_saved(saved: RunState) -> Iterator[None]:
    """A block whose interruption names the state that is kept."""
    try:
        yield
    except BaseException as stopped:
        if not isinstance(stopped, Exception) and saved.path.exists():
            stopped.add_note(f"{saved.path} is kept: the same command goes on from it")
        raise


def _require_output(out: Path, force: bool) -> None:
    """Raises :class:`UsageError` for a folder that a run may not write to."""
    atomic.require_free(out, force=True, holds=_HOLDS)
    if out.exists() and not out.is_dir():
        raise UsageError(Problem("output-exists", str(out), "this is a file", "a folder"))
    if not force and (out / NAME).exists() and not (out / run_state.NAME).exists():
        remedy = "Choose another folder, or pass --force to start over."
        raise UsageError(Problem("output-exists", str(out), "a trained hypernetwork is there already", remedy=remedy))


def _job(config: Config) -> AbstractContextManager[Job]:
    return _fine_tuning(config) if config.tasks is not None else _reconstruction(config)


@contextmanager
def _fine_tuning(config: Config) -> Iterator[Job]:
    assert config.tasks is not None
    texts, pipeline = read_tasks(config.tasks), Pipeline()
    base_model = base_model_at(config.base, pipeline, placement(config.device, config.dtype))
    hypernetwork, record, encoder, _ = _made(config, pipeline, "added")
    tasks = prepared(texts, base_model.tokenizer(), encoder, config.length)
    with base_model.model() as model:
        require_readable(model, tasks, config.base)
        hypernetwork.to(next(model.parameters()).device)
        objective = Objective(record.scale(hypernetwork.shape.rank), config.smoothing, config.penalty)
        recipe = config.recipe(FINE_TUNING)
        run = partial(fine_tune, hypernetwork, model, tasks, objective, recipe)
        yield Job(hypernetwork, record, run, _key(config, [config.tasks], [hypernetwork, model]))


@contextmanager
def _reconstruction(config: Config) -> Iterator[Job]:
    assert config.library is not None
    entries, pipeline = read_library(config.library), Pipeline()
    bound = _checked(entries, config.base, pipeline)
    output: Output = "z-score" if config.loss == "factors" else "plain"
    hypernetwork, record, encoder, target_modules = _made(config, pipeline, output)
    vectors = [embedded(entry.descriptions, lambda text: scaled(encoder(text), encoder)) for entry in entries]
    shape = hypernetwork.shape
    library = Library.of_adapters(vectors, bound, target_modules, shape, record.scale(shape.rank))
    recipe = config.recipe(RECONSTRUCTION)
    hypernetwork.to(placement(config.device, None).device)
    run = partial(reconstruct, hypernetwork, library, recipe, loss=config.loss)
    files = [digest for one in bound for digest in one.adapter.provenance.files.values()]
    yield Job(hypernetwork, record, run, _key(config, [config.library], [hypernetwork], files))


def _checked(entries: list[Described], base: str, pipeline: Pipeline) -> list[BoundAdapter]:
    """The adapters of a library. Raises :class:`AdaptrixError`, also for numbers that are not finite."""
    reports = [pipeline.check(entry.adapter, base) for entry in entries]
    if problems := [problem for report in reports for problem in errors_in(report.problems)]:
        raise RefusedError(problems)
    return [report.bound for report in reports if report.bound is not None]


def _made(
    config: Config, pipeline: Pipeline, output: Output
) -> tuple[Hypernetwork, CheckpointRecord, Encoder, tuple[TargetModule, ...]]:
    """The hypernetwork at its start, what is to be said of it, its encoder, and where its modules are in the base."""
    base = Base.read(config.base, pipeline)
    if config.start is not None:
        return _continued(config, config.start, base)
    target_modules = base.find_modules(config.targets)
    name = None if config.encoder == "base" else config.encoder
    encoder = named_encoder(config.encoder, config.width, config.base, config.pooling, "config")
    sizes = (config.rank, encoder.width, config.latent, config.head)
    shape = Shape(config.variant, base.modules(target_modules), base.layers(target_modules), *sizes, output=output)
    with torch.random.fork_rng([]):
        torch.manual_seed(config.seed)
        hypernetwork = Hypernetwork(shape)
    return (
        hypernetwork,
        CheckpointRecord(config.alpha, config.rslora, config.base, name, _record(config)),
        encoder,
        target_modules,
    )


def _continued(
    config: Config, start: str, base: Base
) -> tuple[Hypernetwork, CheckpointRecord, Encoder, tuple[TargetModule, ...]]:
    """A checkpoint's hypernetwork, as :func:`_made` has it."""
    checkpoint = read_checkpoint(start)
    hypernetwork, settings = checkpoint.hypernetwork, checkpoint.settings
    target_modules = base.find_modules(module.name for module in hypernetwork.shape.modules)
    require_fit(hypernetwork.shape, base, target_modules)
    name, width = settings.encoder or "base", hypernetwork.shape.embedding
    encoder = named_encoder(name, width, config.base, config.pooling, start)
    require_width(encoder.width, width, encoder.name)
    record = CheckpointRecord(settings.alpha, settings.rslora, config.base, settings.encoder, _record(config))
    return hypernetwork, record, encoder, target_modules


def _record(config: Config) -> dict[str, Any]:
    """The training settings that are recorded in the checkpoint's args.yaml."""
    usual = RECONSTRUCTION if config.tasks is None else FINE_TUNING
    loss = {"loss": config.loss} if config.tasks is None else {"smoothing": config.smoothing, "penalty": config.penalty}
    return asdict(config.recipe(usual)) | loss


def _key(config: Config, data: list[Path], networks: list[nn.Module], files: list[str] | None = None) -> str:
    """The identity of a run: its settings, data, and the first numbers of every tensor that it starts from."""
    settings = {key: str(value) for key, value in asdict(config).items() if key != "save_every"}
    digests = [sha256(path.read_bytes()).hexdigest() for path in data] + (files or [])
    return json.dumps([settings, digests, [_digest(network) for network in networks]], sort_keys=True)


def _digest(network: nn.Module) -> str:
    made = sha256()
    for name, tensor in network.state_dict().items():
        made.update(name.encode())
        made.update(tensor.flatten()[:_FIRST].detach().cpu().double().numpy().tobytes())
    return made.hexdigest()
