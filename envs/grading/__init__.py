"""Mathematical answers: whether one equals another, decided without running anything; usable by itself."""
