"""The least that a sweep can be: one setting of one number, and its confirmation."""

from __future__ import annotations

import edm_ray as edm

PLAN = edm.sweep_plan("random", num_global=1, max_chunks=1, chunk_size=100, confirm_chunks=1)
SPACE = """
name: rho
sampler: {solver: heun, num_steps: 3}
search:
  rho: {low: 3.0, high: 9.0}
"""
