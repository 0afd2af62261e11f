"""Adapters to other libraries; each module imports its library and is loaded when it is first asked for."""
