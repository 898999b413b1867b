"""Make the FID reference of a data set: exact moments of its features, and the features of some images.

Finds Inception's weights on this machine or downloads them (`edm-ray weights`); --extractor self needs none. The
weights are copied into the reference, so you need nothing else to evaluate."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

import tyro

from edm_ray.cli.console import Reports, report, say
from edm_ray.cli.progress import Progress
from edm_ray.cli.weights_progress import WeightsProgress
from edm_ray.cli.workers import choose_executor
from edm_ray.tasks.given import OpenedReference
from edm_ray.tasks.reference import ReferenceOptions


@dataclass(frozen=True)
class Args(Reports):
    data: str
    """Data set: a directory or s3:// URI."""
    out: str | None = None
    """Output directory, local or s3://. Or give --store."""
    features: tyro.conf.OmitArgPrefixes[ReferenceOptions] = field(default_factory=ReferenceOptions)
    workers: str = "0"
    """Number of Ray actors that share the data set, one CPU or GPU each; 0: this process, without Ray. The result is
    the same."""
    device: str = "cpu"
    """Where the extractor runs: cpu or cuda."""
    dry_run: bool = False
    """Check the options, print the plan, and stop."""


def run(args: Args) -> None:
    from edm_ray.tasks.given import reference_of
    from edm_ray.tasks.reference import plan_reference

    executor = choose_executor(args.workers, args.device)
    task = plan_reference(args.data, args.out, args.features)
    if task.is_there:
        _say(reference_of(str(task.out)), "the reference is there already")
        return
    if args.dry_run:
        task.check_output()
        lines = list(task.describe(executor))
        for line in lines:
            say(line)
        report({"would_do": lines})
        return
    if args.features.weights is None:
        say(f"  extractor {args.features.extractor}; weights {task.origin}")
    measured, progress = [], Progress("parts of the reference")

    def on_part(done: int, total: int) -> None:
        measured.append(done)
        progress.update(done, total)

    made = task.run(executor, on_part, WeightsProgress())
    _say(made, "made" if measured else "the reference is there already")


def _say(made: OpenedReference, what: str) -> None:
    from edm_ray.storage.commit import read_manifest

    kept = (read_manifest(made.uri) or {}).get("features", 0)
    moments = made.reference.moments
    report(
        {
            "reference": made.uri,
            "is": what,
            "describe": made.describe(),
            "extractor": made.extractor.name,
            "images": made.reference.images,
            "features": moments.mean.size,
            "features_kept": kept,
        }
    )
    say(f"{made.uri}: {what}: {made.describe()}, {made.reference.moments.mean.size} features")
    if kept:
        say(f"  the features of {kept:,} images are kept for KID, precision and recall")
    reference = shlex.quote(made.uri)
    say(f"  measure a model: edm-ray evaluate --model MODEL --reference {reference} --out EVALUATION")
    say(f"  find its best samplers: edm-ray sweep --model MODEL --reference {reference} --nfe 5,8,10 --out SWEEP")
