"""Models on servers: requests and errors, dialects, transport, scheduling, scoring modes, probe, engine."""
