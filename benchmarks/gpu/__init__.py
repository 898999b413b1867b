"""Training and sampling on a GPU, against what the card can do: `python -m benchmarks.gpu --minutes 9 --out DIR`."""
