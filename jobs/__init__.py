"""From batches to published checkpoints."""
