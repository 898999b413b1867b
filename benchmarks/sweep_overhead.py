"""What a trial of a sweep costs beside sampling: the same sweep again, when all of its chunks are there.

    python -m benchmarks.sweep_overhead MODEL REFERENCE [--trials 64] [--concurrent 8] [--repeats 5]

The first run fills the chunk store; the others sample nothing: what they take is Tune, the dispatchers, reading chunks
and working out FIDs (with 11 eigenvalue problems each: the reference's feature count says how large).
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.results import record
from edm_ray.diffusion.samplers import sampler
from edm_ray.distributed.executor import Ray
from edm_ray.distributed.session import session
from edm_ray.distributed.sweep import sweep_on_ray
from edm_ray.evaluation.measure import Plan
from edm_ray.evaluation.reference import open_reference
from edm_ray.generation.evaluate import EvaluationSpec, fid_meter
from edm_ray.models import open_model
from edm_ray.search.dimensions import Range
from edm_ray.search.driver import Driver
from edm_ray.search.plan import sweep_plan
from edm_ray.search.space import Space


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--concurrent", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    reference, extractor = open_reference(str(args.reference))
    model = open_model(str(args.model))
    space = Space(
        name="overhead",
        sampler=sampler(num_steps=4),
        search={"churn_fraction": Range(low=0.01, high=1.0), "s_noise": Range(low=0.99, high=1.01)},
    )
    plan = sweep_plan(
        strategy="random",
        chunk_size=50,
        initial_chunks=1,
        max_chunks=1,
        confirm_chunks=1,
        num_line=0,
        num_global=args.trials,
    )
    with tempfile.TemporaryDirectory() as folder, session():
        spec = EvaluationSpec(model=model, extractors=(extractor,), store=f"{folder}/chunks")
        measured = Plan(metrics=("fid",), reference=reference)
        each: list[float] = []
        firsts: list[float] = []
        for turn in range(args.repeats + 1):
            ends: list[float] = []
            driver = Driver(space, plan, 0)
            began = time.monotonic()
            with fid_meter(spec, measured, Ray(workers=1), args.concurrent) as meter:
                sweep_on_ray(
                    meter.sampling,
                    meter.generator,
                    driver,
                    f"{folder}/{turn}",
                    lambda answer, ends=ends: ends.append(time.monotonic()),
                    args.concurrent,
                )
            # From the first trial's end, so that the start of Tune, once a sweep, is told apart.
            trial = (ends[-1] - ends[0]) / (len(ends) - 1)
            print(
                f"{'filling' if turn == 0 else 'again'}: {len(ends)} trials, first after {ends[0] - began:.1f} s, then "
                f"{trial:.3f} s a trial",
                flush=True,
            )
            shutil.rmtree(f"{folder}/chunks/measurement")  # so that the next sweep works its FIDs out again
            if turn:
                each.append(trial)
                firsts.append(ends[0] - began)
    print(
        f"{args.concurrent} in flight: {statistics.median(each):.3f} s a trial ({min(each):.3f} to {max(each):.3f}), "
        f"{args.repeats} sweeps of {args.trials + 1} evaluations, extractor {reference.extractor_name}"
    )
    record(
        "sweep_overhead", {"a trial beside sampling": ("s", each), "until the first trial": ("s", firsts)}, vars(args)
    )


if __name__ == "__main__":
    main()
