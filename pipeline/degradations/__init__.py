"""Degradations: pure functions from arrays to arrays, seeded by keys where they draw."""
