"""The in-process engine: model, request plan, scoring, decoding, key-value cache, tokenizer."""
