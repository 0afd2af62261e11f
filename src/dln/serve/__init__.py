"""Models and trained networks behind HTTP, in the OpenAI form: requests, batches, answers, the server itself."""
