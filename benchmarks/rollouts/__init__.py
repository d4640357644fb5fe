"""Suite `rollouts`: what a sampled token costs, by engine and by shape of the conversations."""
