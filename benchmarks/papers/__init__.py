"""The page of the eleven papers: every claim as a difference that committed cells hold, and a verdict by one rule."""
