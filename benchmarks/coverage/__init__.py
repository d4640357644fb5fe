"""Suite coverage: when it matters to learn from one's own samples, and from what is bad."""
