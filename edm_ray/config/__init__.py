"""Configuration: frozen dataclasses, named presets, YAML with overrides, run identity."""
