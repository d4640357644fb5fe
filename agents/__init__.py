"""Floor 2: who acts, and how trajectories are collected."""
