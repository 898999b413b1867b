"""Feature extractors by name: each takes pixels and gives features on a fixed-point grid."""
