"""Methods, by the shape of what they learn from: what each takes of a group, and its loss on log-probabilities."""
