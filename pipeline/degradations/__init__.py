"""Degradations, one file per kind. Their functions are pure, map arrays to arrays, and draw from generators seeded by keys."""
