"""Chat messages with tools as tokens, and an agent's text as a message."""
