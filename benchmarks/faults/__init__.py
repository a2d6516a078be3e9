"""What training does when things break. `__main__.py` says what is done to a run, and what may become of it."""
