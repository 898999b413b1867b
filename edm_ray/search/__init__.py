"""The decisions of a sweep, in plain Python: what to evaluate next, what to drop, what won. No Ray, no images."""
