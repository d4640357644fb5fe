"""How tokens are sampled: one seam, `Engine.generate`, and the engines behind it."""
