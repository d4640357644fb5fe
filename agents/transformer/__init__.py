"""Causal language models as policies: tokens, sampling, and scoring."""
