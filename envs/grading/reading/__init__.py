"""From an answer's text to a tree: cleaning, tokens, numbers, units, expressions."""
