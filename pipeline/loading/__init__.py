"""Loading: from shards, here or in a bucket, to the batches of a rank.

In: a built dataset, and which patches of an image are samples (pipeline.sampling). Out: tensors, the same ones for any
number of ranks and threads. Begin with `loader.Loader`.
"""
