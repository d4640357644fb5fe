"""Agents and environments become groups of trajectories."""
