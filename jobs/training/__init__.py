"""Training: from shards and a recipe to a checkpoint in the store.

In: a built dataset, jobs/recipes/<name>.yaml. Out: <store>/runs/<run>/ with its final checkpoint, runs/<recipe>/ with the
pointer to it. Begin with `loop.Run`, plain torch; around it are `worker`, one rank, `ray_train`, all ranks with
their restarts, and `train`, the stage. `submit` has a remote cluster run that stage.
"""
