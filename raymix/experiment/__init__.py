"""The experiment as users describe it, and what can be done with it."""
