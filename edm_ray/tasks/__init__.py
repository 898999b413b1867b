"""The tasks as functions: prepare, train, generate, reference, evaluate, sweep. Each runs where ``on`` says.

A task is planned first: everything given is opened and checked, nothing is started. What was planned can be described
(`--dry-run`) and run. `cli/` parses, plans, runs and prints.
"""
