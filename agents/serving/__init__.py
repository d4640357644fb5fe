"""A policy served through the HTTP interfaces that agent programs use; whole runs of a program become trajectories."""
