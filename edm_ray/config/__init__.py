"""Configuration: frozen dataclasses (`schema`), named presets (`presets`), YAML and overrides (`load`), run identity."""
