"""Views of a run: everything here is rebuilt from its events."""
