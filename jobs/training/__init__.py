"""Training: from shards and a recipe to a checkpoint in the store.

In: a built dataset, jobs/recipes/<name>.yaml. Out: <store>/runs/<run>/ with its final checkpoint, runs/<recipe>/ with the
pointer to it. Begin with `loop.Run`, plain torch; Ray is around it in `train`, and a remote cluster in `submit`.
"""
