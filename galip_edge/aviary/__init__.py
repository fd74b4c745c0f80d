"""Drawn birds, and what only they need: see README.md."""
