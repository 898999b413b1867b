"""What this card can do at best: large matrix products, a large copy."""

from __future__ import annotations

import torch

from benchmarks.gpu.bench import Bench, spread


def ceilings(bench: Bench) -> None:
    size = 256 if bench.toy else 8192
    for precision in ("bf16", "tf32", "fp32"):
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        a, b = (torch.randn(size, size, device=bench.device, dtype=dtype) for _ in range(2))
        seconds = spread(bench.time(lambda a=a, b=b: a @ b, rounds=5))
        bench.ceilings[precision] = 2 * size**3 / seconds["median"]
        bench.row("ceilings", what=precision, tflops=bench.ceilings[precision] / 1e12)
    torch.backends.cuda.matmul.allow_tf32 = False
    source = torch.empty((1 << 20) if bench.toy else (1 << 31), dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    seconds = spread(bench.time(lambda: target.copy_(source), rounds=5))
    bench.ceilings["copy"] = 2 * source.numel() / seconds["median"]
    bench.row("ceilings", what="copy, read and written", gb_per_s=bench.ceilings["copy"] / 1e9)
