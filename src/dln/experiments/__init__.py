"""The paper's comparison: its tasks, its baselines and the networks, under one protocol and one meter."""
