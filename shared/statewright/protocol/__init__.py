"""The wire: what producers push, what the engine answers, and where."""
