"""Feature extractors, exact moments, FID with error bars, references, grids."""
