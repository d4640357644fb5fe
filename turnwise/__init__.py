"""turnwise: multi-turn agents trained from preferences over whole trajectories."""

__version__ = "0.1.0"
