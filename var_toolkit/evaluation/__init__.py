"""Evaluation: the still-life classifier, metrics, sharded sampling and benchmarks."""
