"""Degradations: one file per kind, with its pure functions, from arrays to arrays and seeded by keys where they draw."""
