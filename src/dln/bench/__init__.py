"""Benchmarks: ratios measured inside one process, on real data and the embedded model."""

__all__: list[str] = []
