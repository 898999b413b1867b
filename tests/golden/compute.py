"""The golden values of the code as it is, a section at a time: {section: {case: plain values and arrays}}.

``{"bits": ...}`` holds hashes: compared where bits are, left out elsewhere."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from tests.golden import adapter, cases

Section = dict[str, Any]
SEEDS = torch.tensor([3, 1 << 33], dtype=torch.int64)


def sha(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:32]


def _or_refused(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except adapter.Refused:
        return "refused"


def random_section() -> Section:
    seeds = torch.tensor([0, 1, 3, (1 << 32) - 1, 1 << 32, (1 << 62) + 5], dtype=torch.int64)
    found: Section = {
        f"count={count} step={step} draw={draw}": adapter.random_numbers(seeds, count, step, draw)
        for count, step, draw in ((1, 0, 0), (5, 3, 0), (4, 65535, 2))
    }
    for policy in ("random", "balanced", "7"):
        found[f"classes {policy}"] = adapter.classes_of(torch.arange(0, 60, 7), policy)
    return found


def sampler_section() -> Section:
    """Images, and what a sampler says of itself, for a denoiser without bounds and one that rounds."""
    found: Section = {}
    groups = {
        "mixture": cases.SAMPLERS,
        "grid": cases.ROUNDED,
        "classes": cases.GUIDED,
        "auto": cases.GUIDED[1:3],
    }
    for kind, flats in groups.items():
        for flat in flats:
            images = _or_refused(lambda flat=flat, kind=kind: adapter.sample_analytic(flat, kind, SEEDS))
            found[f"{kind}: {cases.name_of(flat)}"] = images
    return found


def fact_section() -> Section:
    """Noise levels where no column says otherwise: they do not depend on schedule and scaling. What bounds change does
    not depend on scaling, and is the same for Euler and Heun."""
    found: Section = {}
    bounded = {name: adapter.make_network(cases.NETWORKS[name]) for name in ("ve", "iddpm")}
    for flat in [*cases.SAMPLERS, *cases.GUIDED, *cases.REFUSED]:
        twice = flat["solver"] == "euler" or flat.get("scaling") == "vp"
        denoisers = {"unbounded": adapter.closed_form("mixture")} | ({} if twice else bounded)
        facts = {
            kind: _or_refused(lambda flat=flat, denoiser=denoiser: adapter.sampler_facts(flat, denoiser))
            for kind, denoiser in denoisers.items()
        }
        plain = flat.get("schedule", "linear") == "linear" and flat.get("scaling", "none") == "none"
        for kind, own in facts.items():
            if own != "refused" and (kind != "unbounded" or not plain):
                del own["nfe"]  # the same whatever the denoiser, and in every column
            if own != "refused" and not plain:
                del own["noise_levels"], own["needs_noise"]
        found[cases.name_of(flat)] = facts
    return found


def analysis_section() -> Section:
    found: Section = {"langevin": adapter.langevin_of(SEEDS)}
    flats: list[cases.Flat] = [
        {"solver": "heun", "num_steps": 5, "alpha": 0.5, "rho": 3.0},
        {"solver": "heun", "num_steps": 5, "schedule": "vp", "scaling": "vp", "discretization": "vp"},
        {"solver": "heun", "num_steps": 5, "s_churn": 3.0, "restarts": cases.RESTARTS},
        *({"solver": name, "num_steps": 5} for name in ("euler", "dpmpp_2m", "dpmpp_3m_sde")),
        *({"solver": name, "num_steps": 5} for name in ("euler_maruyama", "predictor_corrector")),
    ]
    return found | {cases.name_of(flat): adapter.analyses(flat, SEEDS) for flat in flats}


def network_section() -> Section:
    found: Section = {}
    for name, settings in cases.NETWORKS.items():
        denoiser = adapter.make_network(settings)
        for sigma in (0.05, 1.0, 40.0):
            found[f"{name}: D at {sigma}"] = adapter.denoise(denoiser, SEEDS, sigma)
    seeds = torch.tensor([0, 7, 12, 1 << 33, 5])
    for name, flat, labels in cases.GENERATED:
        denoiser = adapter.make_network(cases.NETWORKS[name])
        images = adapter.generate_images(denoiser, flat, labels, seeds)
        found[f"{name}: {cases.name_of(flat)} labels={labels}"] = images
    guide = adapter.make_network([*cases.SMALL, "denoiser.network.label_dim=0"])
    flat = {"solver": "heun", "num_steps": 5, "guidance": 2.0, "guidance_min": 0.1, "guidance_max": 10.0}
    for kind, other in (("without classes", guide), ("with classes", adapter.make_network(cases.SMALL))):
        denoiser = adapter.make_network([])
        found[f"edm: guided by another {kind}"] = adapter.generate_images(denoiser, flat, "random", seeds, other)
    return found


def pictures(count: int, shift: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [count, 1, 8, 8], bars and blots that whole numbers make, and their classes."""
    i = np.arange(count)[:, None, None]
    y, x = np.arange(8)[:, None], np.arange(8)[None, :]
    levels = (i * 37 + y * (13 + i % 5) + x * (29 - i % 7) + (x - i % 8) ** 2 * 3 + shift * y * x) % 256
    return levels.astype(np.uint8)[:, None], (np.arange(count) * 7 % 10).astype(np.int64)


def fingerprint_of(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Of tensors whatever their names and order: hash of bits, and numbers that move little when they move little."""
    rows = [tensor.detach().numpy() for tensor in tensors.values()]
    hashes = sorted(sha(str(row.shape).encode(), str(row.dtype).encode(), row.tobytes()) for row in rows)
    flat = [row.astype(np.float64).ravel() for row in rows]
    signs = [1.0 - 2.0 * (np.arange(row.size) * 2654435761 >> 13 & 1) for row in flat]
    norm = math.sqrt(math.fsum(np.concatenate(flat) ** 2))  # fsum: the same in any order
    share = math.fsum(np.concatenate(flat) * np.concatenate(signs)) / max(norm, 1e-30)
    return {"bits": sha("".join(hashes).encode()), "count": sum(row.size for row in flat), "norm": norm, "share": share}


def training_section() -> Section:
    found: Section = {}
    with tempfile.TemporaryDirectory() as folder:
        data = adapter.make_dataset(*pictures(64), f"{folder}/data")
        for number, (name, (workers, settings)) in enumerate(cases.TRAININGS.items()):
            run = adapter.train_tiny(workers, data, f"{folder}/run{number}", settings)
            found[name] = {
                "images_seen": run["images_seen"],
                "metrics": [{key: row[key] for key in cases.METRICS} for row in run["metrics"]],
                "tensors": {group: fingerprint_of(tensors) for group, tensors in run["tensors"].items()},
            }
    return found


def evaluation_section() -> Section:
    seeds = np.arange(120, dtype=np.int64)
    made, real = (
        adapter.normal(f"golden {name}", torch.arange(count), 8).numpy() * 1000
        for name, count in (("features", 120), ("reference", 150))
    )
    found: Section = {
        "synthetic": adapter.measures((made + 200).astype(np.int32), seeds, real.astype(np.int32), 10),
    }
    with tempfile.TemporaryDirectory() as folder:
        extract = adapter.digits_extractor(Path(folder))
        mine, its = extract(pictures(120, shift=5)[0]), extract(pictures(150)[0])
        network = adapter.make_network([])
        flat = {"solver": "heun", "num_steps": 4}
        drawn = extract(adapter.generate_images(network, flat, "balanced", torch.from_numpy(seeds[:60])))
    found["digits"] = adapter.measures(mine, seeds, its, 14) | {"rows": mine[:3].astype(np.float64) / 2**14}
    found["generated"] = adapter.measures(drawn, seeds[:60], its, 14)
    return found


def answer(asked: dict[str, Any], who: int, world: int, chunk_size: int) -> dict[str, Any]:
    """Ten groups of images, with noise shared by all settings (the seeds) and a little of their own."""
    n = asked["n"] * chunk_size
    shared = np.random.default_rng([world, 1, len(asked["seeds"]), n]).normal(size=10)
    own = np.random.default_rng([world, 2, len(asked["seeds"]), n, who]).normal(size=10)
    groups = cases.landscape(asked["sampler"]) + (10.0 * shared + 0.5 * own) / np.sqrt(n / 10)
    lo = (groups.sum() - groups) / 9
    se = float(np.sqrt(0.9 * ((lo - lo.mean()) ** 2).sum()))
    mean = float(groups.mean())
    influence = (groups - mean) / 10
    return {"fid": mean + 100 / n, "debiased": mean, "se": se, "n": n, "influence": tuple(influence.tolist())}


def replay(space: str, plan: dict[str, Any], seed: int) -> dict[str, Any]:
    """Settings in the order in which they are first asked for; batches of [setting, stage, seeds, chunks]."""
    sweep = adapter.Sweep(space, plan, seed)
    known: dict[str, int] = {}
    samplers: list[Any] = []
    steps: list[Any] = []
    for batch in sweep.batches():
        rows = []
        for index, asked in enumerate(batch):
            if asked["label"] not in known:
                known[asked["label"]] = len(known)
                samplers.append([asked["label"], asked["sampler"]])
            rows.append([known[asked["label"]], asked["stage"], asked["seeds"], asked["n"]])
            sweep.tell(index, **answer(asked, known[asked["label"]], seed, plan["chunk_size"]))
        steps.append({"asked": rows, "bits": sha(repr(batch).encode())[:8]})
    return {"samplers": samplers, "steps": steps, "result": sweep.result()}


def sweep_section() -> Section:
    return {name: replay(*how) for name, how in cases.SWEEPS.items()}


SECTIONS: dict[str, Callable[[], Section]] = {
    "random": random_section,
    "samplers": sampler_section,
    "facts": fact_section,
    "analysis": analysis_section,
    "networks": network_section,
    "training": training_section,
    "evaluation": evaluation_section,
    "sweeps": sweep_section,
}


def compute(section: str) -> Section:
    """With one thread: more would cut sums elsewhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            return SECTIONS[section]()
    finally:
        torch.set_num_threads(before)


def everything() -> Iterator[tuple[str, Section]]:
    for section in SECTIONS:
        yield section, compute(section)
