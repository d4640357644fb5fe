"""How tokens are sampled: one seam, `Engine.generate`, and its engines."""
