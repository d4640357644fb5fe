"""The commands of this floor: `polyturn train`, `fit` and `eval`."""
