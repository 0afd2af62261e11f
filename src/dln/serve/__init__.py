"""An OpenAI-compatible server for a language model or a trained network."""
