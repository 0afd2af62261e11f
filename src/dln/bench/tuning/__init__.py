"""Search over training options on the dev set, with Optuna."""
