"""Floor 1: environments, trajectories, preferences."""
