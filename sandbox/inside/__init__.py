"""Exactly the files that are sent into a sandbox and run there: this folder is the trust boundary."""
