"""The training step and loop; they run in any process, with or without Ray."""
