"""The executable contract of multi-turn text environments."""
