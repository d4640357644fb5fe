"""Packages to begin with: `polyturn new env|agent|method|suite NAME`."""
