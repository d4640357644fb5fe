"""Floor 0: where model-written code runs."""
