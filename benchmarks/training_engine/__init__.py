"""Suite `training_engine`: what a preference step costs, beside TRL and beside the arithmetic it needs."""
