"""The papers' figures: each function makes files by name, pictures as PNG, plots as SVG, their numbers as CSV or JSON."""
