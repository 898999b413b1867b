"""A cluster as it is found: its nodes, what they hold and whether they can work; and its job API."""
