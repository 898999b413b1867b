"""What a run resumes from: denoiser, its averages, optimizer, images seen."""

from __future__ import annotations

import copy

import torch

from edm_ray.config.training import TrainingConfig
from edm_ray.models.checkpoints import Checkpoint
from edm_ray.networks.build import build_denoiser, on_device

Tensors = dict[str, torch.Tensor]


class TrainingState:
    """State of one worker; equal on all of them after every step.

    network: F_theta of the user's own, where the configuration says network.kind own; copied, with the weights it has.
    """

    def __init__(self, config: TrainingConfig, device: torch.device, network: torch.nn.Module | None = None) -> None:
        self.config, self.device = config, device
        own = copy.deepcopy(network)
        self.denoiser = on_device(build_denoiser(config.denoiser, config.seed, own), device).train()
        self.average = copy.deepcopy(self.denoiser).eval().requires_grad_(False)
        self.powers = {width: copy.deepcopy(self.average) for width in config.ema.sigma_rels}
        self.parameters = list(self.denoiser.parameters())
        adam, cuda = config.optimizer, device.type == "cuda"
        self.optimizer = torch.optim.Adam(
            self.parameters, lr=adam.lr, betas=adam.betas, eps=adam.eps, foreach=not cuda, fused=cuda
        )
        self.images_seen = 0

    def tensors(self) -> dict[str, Tensors]:
        """Everything by file stem of a checkpoint, as plain named tensors."""
        moments = {}
        for name, parameter in self.denoiser.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                moments[f"{name}:{key}"] = value
        powers = {_power_stem(width): average.state_dict() for width, average in self.powers.items()}
        return {
            "model": self.denoiser.state_dict(),
            "ema": self.average.state_dict(),
            "optimizer": moments,
            **powers,
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Resume exactly where the checkpoint was made."""
        self.denoiser.load_state_dict(checkpoint.tensors["model"])
        self.average.load_state_dict(checkpoint.tensors["ema"])
        for width, average in self.powers.items():
            average.load_state_dict(checkpoint.tensors[_power_stem(width)])
        named = dict(self.denoiser.named_parameters())
        for full, value in checkpoint.tensors["optimizer"].items():
            name, key = full.rsplit(":", 1)
            # Adam keeps its step counter on the host, unless it is fused.
            fused = self.optimizer.defaults["fused"]
            state = self.optimizer.state[named[name]]
            if key == "step":
                state[key] = value.to(self.device) if fused else value
            else:
                state[key] = torch.empty_like(named[name], requires_grad=False).copy_(
                    value
                )  # in the parameter's layout
        self.images_seen = checkpoint.images_seen


def _power_stem(width: float) -> str:
    return f"ema-{width:g}"
