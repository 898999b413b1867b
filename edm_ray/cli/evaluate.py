"""FID of a model with one sampler against a reference, with its error; KID, Inception Score, precision and recall too.

Every number names its n, reference and extractor; only numbers that agree in all three are comparable."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Literal

from edm_ray.checkpoint import open_model
from edm_ray.cli.console import Progress, duration, say
from edm_ray.cli.device import check_device
from edm_ray.cli.sampler import choose_settings
from edm_ray.cli.workers import parse_workers
from edm_ray.data.manifest import open_dataset
from edm_ray.errors import InputError
from edm_ray.storage import uris


@dataclass(frozen=True)
class Args:
    model: str
    """Model directory."""
    reference: str
    """Reference that `edm-ray reference` wrote."""
    out: str
    """Directory: evaluation.json and the chunk store."""
    num: int = 50_000
    """Number of images; FID depends on it."""
    metrics: str = "fid"
    """fid, kid, isc (Inception Score), prc (precision and recall), with commas between; all from one pass."""
    protocol: Literal["interval", "paper"] = "interval"
    """interval: --num images, with error bars. paper: three times --num, seeds from 0, as in the paper, which reports
    the minimum; mean and interval are shown beside it."""
    labels: str = "random"
    """random (as in the paper), balanced, or a class number."""
    sampler: str | None = None
    """best-sampler.yaml of a sweep, or a directory that holds one (a sweep's; a model's after `sweep --export`)."""
    set: list[str] = field(default_factory=list)
    """Sampler settings, e.g. --set num_steps=40 s_churn=10"""
    real: str | None = None
    """Data set of held-out real images: the metrics of its first --num images are reported beside."""
    workers: str = "1"
    """Sampling actors; LEAST:MOST to begin with fewer and take more when the cluster has room."""
    device: str = "cpu"
    precision: str = "fp32"
    """fp32, bf16 or fp16: of the network; the sampler's state stays float64."""
    dry_run: bool = False
    """Check what is given, say what would be done, and stop."""


def run(args: Args) -> None:
    from edm_ray.cli.tables import measured_table, protocol_table, show
    from edm_ray.evaluation.measure import measure, over_sets, parse_metrics, plan_measurement
    from edm_ray.evaluation.reference import open_reference, real_features
    from edm_ray.orchestration.chunks import POOL_START
    from edm_ray.orchestration.evaluate import Bench, evaluate_on_ray
    from edm_ray.sampling.generate import PRECISIONS, check_labels

    if args.num < 100:
        raise InputError(f"--num {args.num}: give 100 or more; FID of fewer images says nothing")
    if args.precision not in PRECISIONS:
        raise InputError(f"--precision {args.precision}: give {', '.join(PRECISIONS)}")
    check_device(args.device, here=False)
    least, most = parse_workers(args.workers)
    metrics = parse_metrics(args.metrics)
    settings = choose_settings(args.sampler, args.set)
    model = open_model(uris.absolute(args.model))
    check_labels(args.labels, model.config.network.label_dim)
    where = uris.absolute(args.reference)
    reference, extractor = open_reference(where)
    plan = plan_measurement(metrics, where, reference, extractor)
    dataset = open_dataset(uris.absolute(args.real)) if args.real is not None else None
    if dataset is not None and dataset.rows < args.num:
        raise InputError(f"--real {args.real}: {dataset.rows} images, {args.num} are needed: compare at equal n only")
    store = uris.join(uris.absolute(args.out), "chunks")
    bench = Bench(
        model=model,
        extractor=extractor,
        reference=reference,
        store=store,
        labels=args.labels,
        workers=most,
        least_workers=least,
        device=args.device,
        precision=args.precision,
    )
    paper = args.protocol == "paper"
    starts = [0, args.num, 2 * args.num] if paper else [POOL_START["evaluate"]]
    if args.dry_run:
        times = f"{len(starts)} x {args.num:,}" if paper else f"{args.num:,}"
        say(f"would sample {times} images on {args.workers} x {args.device} and measure {', '.join(metrics)} against")
        say(f"  {reference.describe()}; settings: {settings}; chunks: {store}")
        return
    progress, started = Progress("chunks"), time.monotonic()
    sets = evaluate_on_ray(bench, settings, starts, args.num, plan, progress.update)
    content = {
        "model": args.model,
        "model_hash": model.hash,
        "settings": str(settings),
        "labels": args.labels,
        "precision": args.precision,
        "reference": reference.describe(),
        "samples": sets[0].fid.to_dict(),
        "metrics": [{"first_seed": first, **measured.to_dict()} for first, measured in zip(starts, sets, strict=True)],
    }
    if paper:
        rows = over_sets(sets)
        content["protocol"] = [row.to_dict() for row in rows]
        show(protocol_table(rows, reference.describe(), args.num))
    else:
        show(measured_table(sets[0], f"samples against {reference.describe()}"))
    if dataset is not None:
        features, rank = real_features(dataset, args.num, extractor)
        real = measure(features, rank, plan)
        show(measured_table(real, f"real images of {dataset.name} against {reference.describe()}"))
        content["real"] = {"dataset": args.real, **real.fid.to_dict(), "metrics": real.to_dict()}
    path = uris.join(args.out, "evaluation.json")
    uris.write_bytes(path, json.dumps(content, indent=1).encode())
    say(f"  {duration(time.monotonic() - started)}; written to {path}")
