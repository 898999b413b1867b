"""What 1 to 1,024 sampling actors would do, by discrete events: an estimate, with every assumption in one place.

Actors take chunks of images from one queue; the queue hands them out one at a time; a chunk goes to storage while its
actor is at the next; when the last chunk of an evaluation is stored, its FID (11 eigenvalue problems, for the error
bar) runs on one of the CPUs set aside, while actors work on the next evaluation. Costs of the algebra and of chunks
are measured on a CPU core (actors.json beside this file); the rest is assumed. Pools of 1 and 2 actors, measured:
`python -m benchmarks.pool`.

    python -m research.scale.actors               the tables, from actors.json
    python -m research.scale.actors --measure     measures this machine first and writes actors.json
"""

from __future__ import annotations

import argparse
import heapq
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.evaluation import algebra
from edm_ray.diffusion.samplers import sampler
from edm_ray.evaluation.chunks import Chunk, Generator, read_chunk, write_chunk
from edm_ray.seeding import normal, stream_key

COSTS_FILE = Path(__file__).with_suffix(".json")
ACTORS = (1, 4, 16, 64, 256, 1024)
MEASURED_CHUNK, D, GROUPS = 500, 2048, 10


@dataclass(frozen=True, kw_only=True)
class Assumed:
    sampled_per_second: float = 60.0
    """Images of one GPU (CIFAR-10, 35 network calls; an estimate for an H100)."""
    extracted_per_second: float = 1500.0
    """Images of the same GPU through Inception (estimate)."""
    spread: float = 0.05
    """Standard deviation of the logarithm of a chunk's time."""
    dispatch_seconds: float = 0.004
    """Of the queue for each chunk, one after another: two Ray calls and a look into the store."""
    start_seconds: float = 30.0
    """Until an actor has its model and extractor on the GPU; all start at once."""
    storage_bytes_per_second: float = 1e9
    """Of the store, shared by all."""
    fid_cpus: int = 16


def measured(cpu: dict[str, float]) -> dict[str, float]:
    """Seconds of the parts; `cpu` is from the algebra, writing and reading a chunk is measured here (medians of 5)."""
    features = np.random.default_rng(0).integers(0, 1 << 15, (MEASURED_CHUNK, D), dtype=np.int32)
    made = Generator(model="m", extractor="e", labels="random", micro_batch=50, device="cpu")
    writes, reads = [], []
    with tempfile.TemporaryDirectory() as store:
        for first in range(0, 5 * MEASURED_CHUNK, MEASURED_CHUNK):
            chunk = Chunk(generator=made, settings=sampler(), first=first, size=MEASURED_CHUNK)
            started = time.process_time()
            write_chunk(store, chunk, features)
            writes.append(time.process_time() - started)
            started = time.process_time()
            read_chunk(store, chunk)
            reads.append(time.process_time() - started)
    return {
        "fid": cpu["edm_ray, each FID"],
        "reference": cpu["edm_ray, the reference, once"],
        "moments": cpu["moments of 500 images"],
        "write": statistics.median(writes),
        "read": statistics.median(reads),
    }


@dataclass(frozen=True, kw_only=True)
class Outcome:
    seconds: float
    sampling_share: float
    """Share of the actors' time, from the first second to the last FID, that is sampling."""
    queue_wait: float
    """Mean seconds that an idle actor waits for the queue, a chunk."""
    fid_tail: float
    """Seconds after the last chunk was stored."""


def simulate(
    actors: int, evaluations: int, chunks: int, size: int, costs: dict[str, float], assumed: Assumed
) -> Outcome:
    """``evaluations`` evaluations of ``chunks`` chunks of ``size`` images each, asked for in order, all at once."""
    total = evaluations * chunks
    jitter = torch.exp(
        assumed.spread * normal(stream_key("simulated chunks"), torch.arange(total, dtype=torch.int64), 1)[:, 0]
    ).tolist()
    sampling, share = size / assumed.sampled_per_second, size / MEASURED_CHUNK
    work = sampling + size / assumed.extracted_per_second
    # Events in order of time: (time, actor, chunk it has made, or -1 when it is free).
    events = [(assumed.start_seconds, actor, -1) for actor in range(actors)]
    heapq.heapify(events)
    queue_free = storage_free = waited = sampled = 0.0
    stored, following = [0.0] * total, 0
    while events:
        now, actor, made = heapq.heappop(events)
        if made >= 0:
            storage_free = max(now, storage_free) + size * D * 4 / assumed.storage_bytes_per_second
            stored[made] = storage_free + share * costs["write"]
            heapq.heappush(events, (now, actor, -1))
        elif following < total:
            queue_free = max(now, queue_free) + assumed.dispatch_seconds
            waited += queue_free - now
            sampled += sampling * jitter[following]
            heapq.heappush(events, (queue_free + work * jitter[following], actor, following))
            following += 1
    ends = sorted(max(stored[i * chunks : (i + 1) * chunks]) for i in range(evaluations))
    algebra = chunks * share * (costs["read"] + costs["moments"]) + (GROUPS + 1) * costs["fid"]
    workers = [costs["reference"]] * assumed.fid_cpus  # each decomposes the reference once, while the others sample
    heapq.heapify(workers)
    last = 0.0
    for end in ends:
        done = max(end, heapq.heappop(workers)) + algebra
        heapq.heappush(workers, done)
        last = max(last, done)
    return Outcome(
        seconds=last,
        sampling_share=sampled / (actors * last),
        queue_wait=waited / total,
        fid_tail=last - max(stored),
    )


def table() -> str:
    """One evaluation of 50,000 images, and the first stage of a large sweep: 256 settings of 5,000 images."""
    costs, assumed = json.loads(COSTS_FILE.read_text()), Assumed()
    lines = []
    for title, evaluations, chunks, size in (
        ("One evaluation of 50,000 images (500 chunks of 100)", 1, 500, 100),
        ("256 settings of 5,000 images (2,560 chunks of 500)", 256, 10, 500),
    ):
        lines += [
            f"**{title}**",
            "",
            "| actors | minutes | sampling share | queue wait, s a chunk | FID after the last chunk, s |",
            "|---|---|---|---|---|",
        ]
        for actors in ACTORS:
            got = simulate(actors, evaluations, chunks, size, costs, assumed)
            lines.append(
                f"| {actors:,} | {got.seconds / 60:.1f} | {got.sampling_share:.0%} | {got.queue_wait:.3f} | "
                f"{got.fid_tail:.0f} |"
            )
        lines.append("")
    known = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in costs.items())
    lines += [
        f"Measured (CPU seconds on one core, chunks of 500): {known}. Assumed: a GPU samples "
        f"{assumed.sampled_per_second:g} images/s and puts {assumed.extracted_per_second:,.0f} a second through "
        f"Inception, with a spread of {assumed.spread:.0%}; the queue needs {1000 * assumed.dispatch_seconds:.0f} ms a "
        f"chunk; actors start in {assumed.start_seconds:.0f} s; storage takes "
        f"{assumed.storage_bytes_per_second / 1e9:.0f} GB/s; {assumed.fid_cpus} CPUs for FIDs. **Simulated, not run.**"
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if args.measure:
        cpu = {name: statistics.median(run.cpu for run in runs) for name, runs in algebra(args.repeats).items()}
        COSTS_FILE.write_text(json.dumps(measured(cpu), indent=1) + "\n")
    print(table())


if __name__ == "__main__":
    main()
