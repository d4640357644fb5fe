"""What surrounds training: iterations, online collection, warm starts, evaluation."""
