"""Turn a source into a data set: sharded Parquet with a manifest. The same command resumes.

SOURCE is a path or s3:// URI of a folder of pictures (one class per subfolder, or dataset.json), a zip of pictures,
CIFAR-10/100 python archives, MNIST idx files, Hugging Face style Parquet, tar shards (webdataset), or .npz; with
--codec latents a .npz or .npy of latents. Its kind is detected. Or SOURCE is `digits` (scikit-learn's handwritten
digits; writes DEST/train and DEST/heldout), `photographs` (crops of the two photographs in scikit-learn) or
`more-photographs` (and of six more in scikit-image, if it is installed). docs/data.md describes all of them."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from edm_ray.cli.console import Reports, report, say
from edm_ray.cli.progress import Progress
from edm_ray.cli.workers import choose_executor
from edm_ray.data.manifest import DataSet
from edm_ray.errors import counted
from edm_ray.storage import uris
from edm_ray.tasks.prepare import PrepareOptions


@dataclass(frozen=True)
class Args(Reports):
    source: Annotated[str, tyro.conf.Positional]
    """`digits`, `photographs`, `more-photographs`, or a path or s3:// URI."""
    dest: Annotated[str, tyro.conf.Positional]
    """Output directory, local or s3://bucket/key."""
    reading: tyro.conf.OmitArgPrefixes[PrepareOptions] = field(default_factory=PrepareOptions)
    workers: str = "0"
    """Number of Ray actors that write shards, on any node; 0: this process, without Ray. The bytes are the same."""
    endpoint_url: str | None = None
    """Endpoint of an S3-compatible store; the same as AWS_ENDPOINT_URL."""
    dry_run: bool = False
    """Check the options, print the plan, and stop."""


def run(args: Args) -> None:
    from edm_ray.data.manifest import open_dataset
    from edm_ray.tasks.prepare import plan_prepare

    executor, made = choose_executor(args.workers, "cpu"), list[DataSet]()
    planned = []
    for task in plan_prepare(args.source, args.dest, args.reading):
        for note in task.notes:
            say(f"{args.source}: {note}")
        if args.dry_run:
            say(task.describe())
            planned.append({"dest": task.dest, "records": task.plan.records, "shards": task.plan.num_shards})
        elif task.is_there:
            say(f"{task.dest}: a data set is there already and is left as it is; delete it to write it again")
            made.append(open_dataset(task.dest))
            _describe(made[-1])
        else:
            progress = Progress("records")
            progress.update(0, task.plan.records)
            made.append(task.run(executor, progress.update))
            _describe(made[-1])
    if made:
        say(f"  plan a training: edm-ray train --data {shlex.quote(made[0].uri)} --out RUN --dry-run")
    report({"would_write": planned} if args.dry_run else {"datasets": [facts(dataset) for dataset in made]})


def facts(dataset: DataSet) -> dict[str, Any]:
    """Of a data set, for --json."""
    return {
        "uri": dataset.uri,
        "name": dataset.name,
        "hash": dataset.hash,
        "rows": dataset.rows,
        "resolution": dataset.resolution,
        "channels": dataset.channels,
        "classes": dict(zip(dataset.class_names, dataset.class_counts)) or list(dataset.class_names),
        "shards": len(dataset.shards),
        "mean": dataset.mean,
        "std": dataset.std,
        "skipped": {"count": dataset.skipped.count, "first": dataset.skipped.first},
    }


def _describe(dataset: DataSet) -> None:
    classes = counted(len(dataset.class_names), "class", "classes") if dataset.class_names else "no classes"
    std = ", ".join(f"{value:.2f}" for value in dataset.std)
    what = "images" if dataset.codec.is_pixels else "latents"
    say(
        f"{dataset.uri}: {dataset.rows:,} {what} of {dataset.resolution}x{dataset.resolution}x{dataset.channels}, "
        f"{classes}, {counted(len(dataset.shards), 'shard')}; standard deviation {std} (what sigma_data should be near)"
    )
    if dataset.skipped.count:
        say(f"{dataset.uri}: skipped {counted(dataset.skipped.count, 'record')}:")
        for line in dataset.skipped.first[:10]:
            say(f"  {line}")
        if dataset.skipped.count > 10:
            say(f"  ... the first {len(dataset.skipped.first)} are listed in {uris.join(dataset.uri, 'manifest.json')}")
