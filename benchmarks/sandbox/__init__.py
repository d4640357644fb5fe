"""Suite sandbox: the sandbox measured beside other ways to run a snippet of Python."""
