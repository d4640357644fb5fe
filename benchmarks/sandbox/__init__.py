"""Suite `sandbox`: the sandbox, measured against other ways to run a snippet of Python."""
