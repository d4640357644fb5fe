"""Tool-integrated mathematics: the environment, and the problems it asks."""
