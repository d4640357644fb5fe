"""Floor 4: one suite per published claim."""
