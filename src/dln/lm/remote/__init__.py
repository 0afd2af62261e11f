"""Models behind HTTP: calls (pure), transport (one event loop), dialects (one per kind of server), the engine."""
