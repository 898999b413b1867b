"""Data sets: sharded Parquet with a manifest, and an order of training that is arithmetic."""
