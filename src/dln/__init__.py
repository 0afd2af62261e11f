"""Deep Language Networks: train the prompts of multi-stage LLM programs by variational inference."""

__all__ = ["__version__"]

__version__ = "0.1.0"
