"""Floor 3: losses, methods and the training loop."""
