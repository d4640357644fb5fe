"""Agents that need no model: demonstrations to imitate, and gold solutions."""
