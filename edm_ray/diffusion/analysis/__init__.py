"""What can be learnt of a denoiser and a sampler: truncation error, inversion, Langevin iteration, closed forms."""
