"""Suites of conversations: Education Dialogue and Car Dealer."""
