"""From raw photographs to batches. Nothing here imports `jobs`."""
