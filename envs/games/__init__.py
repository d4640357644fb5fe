"""Small games with known answers: bandits, matrix and tabular games, token tasks, and the example Guess."""
