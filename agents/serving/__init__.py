"""A policy behind the HTTP interfaces that agent programs speak; whole runs of a program become trajectories."""
