"""The search for the best sampler. Knows no Ray, no clock and no images: it asks for FIDs and is told them.

A space (`space`) has points; a point is a sampler, and a sampler has one label (`registry`). A plan (`plan`) names a
strategy (`race`, `baselines`), which looks at samplers within a budget (`budget`). The driver (`driver`) hands out what
the strategy asks, and confirms what it found; the result (`result`) is read off the driver.
"""
