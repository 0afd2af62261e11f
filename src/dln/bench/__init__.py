"""Benchmarks: ratios measured inside one process, on real data and the embedded model."""
