"""Environments that others wrote, as multi-turn text environments; each needs the package it adapts."""
