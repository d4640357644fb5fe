"""Learned feedback: reward and preference models, annotators, duels between agents."""
