"""Measure the FID of a model with one sampler, with its error; also KID, Inception Score, precision and recall.

Every number names its n, reference and extractor; only numbers that agree in all three are comparable."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import tyro

from edm_ray.cli.console import Reports, duration, report, say
from edm_ray.cli.progress import Progress
from edm_ray.cli.sampler import choose_settings
from edm_ray.cli.workers import choose_executor
from edm_ray.diffusion.samplers import Sampler
from edm_ray.errors import InputError
from edm_ray.execution.executor import Executor
from edm_ray.tasks.evaluate import RESULT, EvaluateOptions, Evaluation, EvaluationPlan
from edm_ray.tasks.given import other_data
from edm_ray.tasks.trainings import TRAININGS, TrainingsEvaluation

PICTURED, COLUMNS, GAP = 50, 10, 4
"""Of the model card's picture."""


@dataclass(frozen=True)
class Args(Reports):
    model: list[str] = field(default_factory=list)
    """Model directory. Several, of trainings that differ in their seed: also how far their FIDs spread, beside what
    sampling alone makes of it. Or give --follow."""
    reference: list[str] = field(default_factory=list)
    """One or more references from `edm-ray reference`, e.g. for inception and for dinov2; the images are sampled once
    for all."""
    out: str = ""
    """Output directory, local or s3://, for evaluation.json and, without --store, the chunks of features."""
    follow: str | None = None
    """Instead of --model: a training run. Measures each of its snapshots (`train --snapshot-kimg N`) once; run the
    command again while the training continues."""
    num: int = 50_000
    """Number of images; the FID depends on it."""
    evaluation: tyro.conf.OmitArgPrefixes[EvaluateOptions] = field(default_factory=EvaluateOptions)
    sampler: str | None = None
    """The result of a sweep: best-sampler.yaml, best-samplers.yaml, or the directory that holds one (a sweep's, or a
    model's after `sweep --export`)."""
    nfe: int | None = None
    """Which sampler to take from best-samplers.yaml (`sweep --nfe`): the best with at most this many network
    evaluations."""
    set: list[str] = field(default_factory=list)
    """Sampler settings, e.g. --set num_steps=40 s_churn=10"""
    workers: str = "1"
    """Number of Ray actors that sample; LEAST:MOST to start with fewer and add more when the cluster can; 0: this
    process, without Ray. The numbers are the same."""
    device: str = "cpu"
    """cpu or cuda."""
    actors_per_gpu: int = 1
    """Number of actors that share a GPU."""
    card: bool = False
    """Also write the numbers, how they were measured and a picture of samples into the model directory (config.json and
    model card)."""
    dry_run: bool = False
    """Check the options, print the plan, and stop."""


def run(args: Args) -> None:
    from edm_ray.tasks.evaluate import plan_evaluation
    from edm_ray.tasks.trainings import plan_trainings

    if bool(args.model) == bool(args.follow):
        raise InputError("give --model MODEL, or --follow RUN for the snapshots of a run")
    if not args.out:
        raise InputError("give --out DIRECTORY for evaluation.json and the chunks of features")
    executor = choose_executor(args.workers, args.device, args.actors_per_gpu)
    sampler = choose_settings(args.sampler, args.set, args.nfe)
    if args.follow is not None:
        _follow(args, args.follow, sampler, executor)
        return
    how = (args.reference, sampler, args.num, args.evaluation, args.out)
    several = plan_trainings(args.model, *how) if len(args.model) > 1 else None
    plans = several.plans if several else [plan_evaluation(args.model[0], *how)]
    for note in dict.fromkeys(note for p in plans for each in p.references if (note := other_data(each, p.model))):
        say(f"  {note}")
    if args.dry_run:
        _show_plan(plans, executor)
        return
    progress, started = Progress("chunks"), time.monotonic()
    if several:
        over = several.run(executor, progress.update)
        results, content, written = over.evaluations, over.to_dict(), f"{args.out}/{TRAININGS}"
        _show_spreads(over)
    else:
        results = (plans[0].run(executor, progress.update),)
        content, written = results[0].to_dict(), f"{args.out}/{RESULT}"
        _show(results[0])
    for result in results if args.card else ():
        _write_card(result, args.device)
    report({**content, "written": written})
    where = f"{written}{' and into the model' + 's' * (len(results) > 1) if args.card else ''}"
    say(f"  {duration(time.monotonic() - started)}; written to {where}")


def _follow(args: Args, run: str, sampler: Sampler, executor: Executor) -> None:
    from edm_ray.tasks.evaluate import follow

    rows = []
    for nimg, snapshot in follow(
        run, args.reference[0], sampler, args.num, on=executor, out=args.out, **vars(args.evaluation)
    ):
        say(f"  {nimg:>12,} images: {snapshot.measured.fid.describe()}")
        rows.append({"nimg": nimg, **snapshot.measured.fid.to_dict()})
    report({"snapshots": rows})


def _show_plan(plans: Sequence[EvaluationPlan], executor: Executor) -> None:
    """What it would take: of all models together."""
    from edm_ray.cli.spending import Work, spending

    first = plans[0]
    images, nfe = len(plans) * len(first.starts) * first.num, first.sampler.nfe
    calls = images * nfe if nfe else None
    real = first.num if first.held_out is not None else 0
    work = Work(
        images=images,
        calls=calls,
        stored=sum(plan.stored(executor) for plan in plans),
        real=real,
        precision=first.options.precision,
        micro_batch=first.options.micro_batch,
    )
    spent = spending(work, first.model, [each.extractor for each in first.references], executor)
    if len(plans) > 1:
        say(f"for each of {len(plans)} models:")
    for line in first.describe(executor):
        say(line)
    for line in spent.lines:
        say(f"  {line}")
    report({**vars(work), **spent.facts})


def _show_spreads(over: TrainingsEvaluation) -> None:
    """A table a reference, a row a training, and what their spread says."""
    from edm_ray.cli.tables import show, trainings_table

    first = over.evaluations[0]
    for place, (plan, spread) in enumerate(zip(first.plans, over.spreads, strict=True)):
        measured = [(each.model.uri, each.measured(place)[0]) for each in over.evaluations]
        show(trainings_table(measured, spread, plan.reference.describe()))
        say(f"  {spread.sentence()}")


def _show(result: Evaluation) -> None:
    """A table a reference."""
    from edm_ray.cli.tables import measured_table, protocol_table, show
    from edm_ray.evaluation.measure import over_sets

    for place, plan in enumerate(result.plans):
        sets, against = result.measured(place), plan.reference.describe()
        if len(sets) > 1:
            show(protocol_table(over_sets(sets), against, sets[0].fid.n))
        else:
            show(measured_table(sets[0], f"samples against {against}"))
        if result.real:
            show(measured_table(result.real[place].measured, f"real images of {result.real_name} against {against}"))
    kinds = result.made_on
    if len(kinds) > 1:
        say(f"  made on {len(kinds)} kinds of device ({', '.join(kinds)}), whose images may differ by a level")


def _write_card(result: Evaluation, device: str) -> None:
    """The numbers with how they were measured, and a picture of samples by the same sampler."""
    from edm_ray.cli.tables import card_rows
    from edm_ray.models.directory import add_metrics

    card: dict[str, str] = {}
    for place, plan in enumerate(result.plans):
        card |= card_rows(result.measured(place), f"against {plan.reference.describe()}; {result.how()}")
    add_metrics(result.model, card, _picture(result, device))


def _picture(result: Evaluation, device: str) -> bytes:
    """PNG of PICTURED images, one class per row."""
    import torch

    from edm_ray.evaluation.grids import grid_png, image_grid, rows_by_class
    from edm_ray.generation.generate import generate, labels_of

    model, seeds, names = result.model, torch.arange(PICTURED), list[str]()
    classes, precision = model.config.network.label_dim, result.options.precision
    images = generate(model.denoiser(device), seeds, result.sampler, "balanced", precision=precision).numpy()
    if classes:
        labels = labels_of(seeds, classes, "balanced", model.empty_classes).numpy()
        images, names = rows_by_class(images, labels, COLUMNS, model.class_names)
    scale = max(1, 48 // images.shape[-1])
    text = {"seeds": f"0..{PICTURED - 1}", "settings": result.how()}
    return grid_png(image_grid(images, COLUMNS, scale, gap=GAP), text, names, images.shape[2] * scale + GAP)
