"""Examples that `edm-ray COMMAND --help` ends with. A test has each of them accepted."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("demo", "demo --out /tmp/demo --quick"),
    "prepare": (
        "prepare PHOTOS data/photos --resolution 32",
        "prepare PHOTOS data/photos --resolution 64 --mode rgb --alpha white --on-error skip",
        "prepare cifar-10-python.tar.gz s3://bucket/data/cifar10 --workers 8",
    ),
    "inspect": ("inspect data/photos --out photos.png", "inspect s3://bucket/data/cifar10 --no-verify --json"),
    "train": (
        "train --data data/photos --out runs/photos --dry-run",
        "train --data data/photos --out runs/photos --preset small-32 --snapshot-kimg 10",
        "train --data s3://bucket/data/cifar10 --out s3://bucket/runs/c --preset cifar10-cond-vp-f --workers 8 "
        "--device cuda --set precision=bf16",
    ),
    "ema": ("ema runs/photos models/photos-wide --sigma-rel 0.1",),
    "export": (
        "export runs/photos",
        "export runs/photos models/early --nimg 51200",
        "export runs/photos/model diffusers-photos --format diffusers",
    ),
    "weights": ("weights", "weights inception"),
    "reference": (
        "reference --data data/photos --out refs/photos",
        "reference --data data/photos --out refs/photos --extractor dinov2 --device cuda",
    ),
    "generate": (
        "generate --model runs/photos/model --out samples.png",
        "generate --model runs/photos/model --out samples.zip --num 50000 --seed 100 --workers 8 --device cuda",
        "generate --model runs/photos/model --sampler sweeps/photos --nfe 8 --out fast.png",
        "generate --model runs/photos/model --neighbours data/photos --out copies.png --num 8",
    ),
    "evaluate": (
        "evaluate --model runs/photos/model --reference refs/photos --out evals/photos --num 5000 --dry-run",
        "evaluate --model runs/photos/model --reference refs/photos --out evals/photos --num 5000 --card --json",
        "evaluate --model runs/seed0/model runs/seed1/model --reference refs/photos --out evals/seeds --num 5000",
        "evaluate --follow runs/photos --reference refs/photos --out evals/follow --num 500",
    ),
    "fid": ("fid samples.zip data/photos", "fid FOLDER refs/photos --num 5000 --json"),
    "sweep": (
        "sweep --model runs/photos/model --reference refs/photos --nfe 5,8,10,18,35 --out sweeps/photos --dry-run",
        "sweep --model runs/photos/model --reference refs/photos --nfe 5,8,10,18,35 --out sweeps/photos --workers 8 "
        "--device cuda",
    ),
    "export-sampler": (
        "export-sampler sweeps/photos --nfe 8 --to comfyui",
        "export-sampler sweeps/photos --nfe 8 --to diffusers --out scheduler.json",
    ),
    "report": ("report sweeps/photos", "report sweeps/photos --json"),
    "submit": (
        "submit --address http://HOST:8265 -- train --data s3://bucket/data/photos --out s3://bucket/runs/photos",
        "submit --address http://HOST:8265 --list --json",
    ),
    "doctor": ("doctor", "doctor --address http://HOST:8265 --storage s3://bucket/prefix --device cuda"),
    "import": (
        "import edm-cifar10-32x32-cond-vp.pkl models/cifar10",
        "import cifar10-32x32.npz refs/cifar10 --weights weights-inception-2015-12-05-6726825d.pth",
    ),
    "presets": ("presets", "presets --all", "presets small-32"),
    "explain": (
        "explain --out figures",
        "explain --out figures --model runs/photos/model --set solver=unipc num_steps=8",
    ),
    "completion": (
        "completion bash > ~/.local/share/bash-completion/completions/edm-ray",
        "completion zsh > ~/.zfunc/_edm-ray",
        "completion fish > ~/.config/fish/completions/edm-ray.fish",
    ),
}
