"""Publishing: evaluated checkpoints into the store, each with its card, and what a store holds.

In: a checkpoint and its scores in runs/<recipe>/. Out: <store>/models/<recipe>/<version>/. Begin with `publish.publish`.
"""
