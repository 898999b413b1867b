"""FID of a model with one sampler against a reference, with its error; KID, Inception Score, precision and recall too.

Every number names its n, reference and extractor; only numbers that agree in all three are comparable."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from edm_ray.cli.console import Progress, duration, say
from edm_ray.cli.sampler import choose_settings
from edm_ray.cli.workers import choose_executor
from edm_ray.data.manifest import open_dataset
from edm_ray.errors import InputError
from edm_ray.models import open_model
from edm_ray.models.directory import add_metrics
from edm_ray.storage import uris


@dataclass(frozen=True)
class Args:
    model: str
    """Model directory."""
    reference: list[str]
    """References that `edm-ray reference` wrote, e.g. one of inception and one of dinov2: all are measured on the same
    images, which are sampled once."""
    out: str
    """Directory or s3:// URI: evaluation.json and, without --store, the chunk store."""
    store: str | None = None
    """Chunk store: a directory or s3:// URI, for any number of evaluations; what is there is not sampled again."""
    num: int = 50_000
    """Number of images; FID depends on it."""
    metrics: str = "fid"
    """fid, kid, isc (Inception Score), prc (precision and recall), with commas between; all from one pass. isc is of
    the references whose extractor has classes."""
    protocol: Literal["interval", "paper"] = "interval"
    """interval: --num images, with error bars. paper: three times --num, seeds from 0, as in the paper, which reports
    the minimum; mean and interval are shown beside it."""
    labels: str = "random"
    """random (as in the paper), balanced, or a class number."""
    sampler: str | None = None
    """best-sampler.yaml of a sweep, or a directory that holds one (a sweep's; a model's after `sweep --export`)."""
    set: list[str] = field(default_factory=list)
    """Sampler settings, e.g. --set num_steps=40 s_churn=10"""
    guide: str | None = None
    """Model directory of the model that guides it (autoguidance), where --set guidance=... says so. Without it guidance
    is classifier-free: the model itself without its labels."""
    real: str | None = None
    """Data set of held-out real images: the metrics of its first --num images are reported beside."""
    workers: str = "1"
    """Ray actors that sample; LEAST:MOST to begin with fewer and take more when the cluster has room; 0: this process,
    without Ray. The numbers are the same."""
    device: str = "cpu"
    """cpu or cuda."""
    actors_per_gpu: int = 1
    """Sampling actors that share a GPU."""
    precision: str = "fp32"
    """fp32, bf16 or fp16: of the network; the sampler's state stays float64."""
    card: bool = False
    """Write the numbers into the model directory too: its config.json and model card."""
    dry_run: bool = False
    """Check what is given, say what would be done, and stop."""


def run(args: Args) -> None:
    from edm_ray.cli.tables import card_rows, measured_table, protocol_table, show
    from edm_ray.evaluation.chunks import POOL_START
    from edm_ray.evaluation.measure import over_sets, parse_metrics, plan_all
    from edm_ray.evaluation.parts import measure_real
    from edm_ray.generation.evaluate import EvaluationSpec, evaluate
    from edm_ray.generation.generate import PRECISIONS, check_labels

    if args.num < 100:
        raise InputError(f"--num {args.num}: give 100 or more; FID of fewer images says nothing")
    if args.precision not in PRECISIONS:
        raise InputError(f"--precision {args.precision}: give {', '.join(PRECISIONS)}")
    executor = choose_executor(args.workers, args.device, args.actors_per_gpu)
    metrics = parse_metrics(args.metrics)
    settings = choose_settings(args.sampler, args.set)
    model = open_model(uris.absolute(args.model), args.guide and uris.absolute(args.guide))
    check_labels(args.labels, model.config.network.label_dim)
    plans, extractors = plan_all(metrics, [uris.absolute(where) for where in args.reference])
    dataset = open_dataset(uris.absolute(args.real)) if args.real is not None else None
    if dataset is not None and dataset.rows < args.num:
        raise InputError(f"--real {args.real}: {dataset.rows} images, {args.num} are needed: compare at equal n only")
    store = uris.absolute(args.store) if args.store is not None else uris.join(uris.absolute(args.out), "chunks")
    spec = EvaluationSpec(
        model=model, extractors=tuple(extractors), store=store, labels=args.labels, precision=args.precision
    )
    paper = args.protocol == "paper"
    starts = [0, args.num, 2 * args.num] if paper else [POOL_START["evaluate"]]
    if args.dry_run:
        times = f"{len(starts)} x {args.num:,}" if paper else f"{args.num:,}"
        say(f"would sample {times} images on {args.workers} x {args.device}; settings: {settings}; chunks: {store}")
        for plan in plans:
            say(f"  and measure {', '.join(plan.metrics)} against {plan.reference.describe()}")
        return
    progress, started = Progress("chunks"), time.monotonic()
    with executor.session(spec.recipe()):
        results = evaluate(spec, settings, starts, args.num, plans, executor, progress.update)
        reals = [] if dataset is None else measure_real(dataset, args.num, plans, extractors, store, executor)
    made_on = sorted({kind for of_set in results for result in of_set for kind in result.made_on})
    content = {
        "model": args.model,
        **({"guide": args.guide} if args.guide else {}),
        "model_hash": model.hash,
        "settings": str(settings),
        "labels": args.labels,
        "precision": args.precision,
        "made_on": made_on,
    }
    further: list[dict[str, Any]] = []
    card: dict[str, str] = {}
    for place, plan in enumerate(plans):
        sets = [of_set[place].measured for of_set in results]
        said = plan.reference.describe()
        how = f"{settings}, labels {args.labels}, {args.precision}{f', guide {args.guide}' if args.guide else ''}"
        card |= card_rows(sets, f"against {said}; {how}")
        entry: dict[str, Any] = {
            "reference": said,
            "samples": sets[0].fid.to_dict(),
            "metrics": [{"first_seed": first, **one.to_dict()} for first, one in zip(starts, sets, strict=True)],
        }
        if paper:
            rows = over_sets(sets)
            entry["protocol"] = [row.to_dict() for row in rows]
            show(protocol_table(rows, said, args.num))
        else:
            show(measured_table(sets[0], f"samples against {said}"))
        if dataset is not None:
            real = reals[place].measured
            show(measured_table(real, f"real images of {dataset.name} against {said}"))
            entry["real"] = {"dataset": args.real, **real.fid.to_dict(), "metrics": real.to_dict()}
        if place:
            further.append(entry)
        else:
            content |= entry
    if further:
        content["further_references"] = further
    if len(made_on) > 1:
        say(f"  made on {len(made_on)} kinds of device ({', '.join(made_on)}), whose images may differ by a level")
    path = uris.join(args.out, "evaluation.json")
    uris.write_bytes(path, json.dumps(content, indent=1).encode())
    if args.card:
        add_metrics(model.uri, card)
    say(f"  {duration(time.monotonic() - started)}; written to {path}{' and into the model' if args.card else ''}")
