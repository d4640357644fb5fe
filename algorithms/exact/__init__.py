"""Exact solutions of games and bandits: equilibria, mirror descent, closed forms. Needs nothing else of its floor."""
