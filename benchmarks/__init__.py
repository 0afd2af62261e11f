"""Benchmarks of the engines: ratios measured inside one process, on real data and the embedded model."""
