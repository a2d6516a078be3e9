"""Loading: from shards, here or in a bucket, to the batches of a rank.

In: a built dataset, and the rule which patches of an image are samples (pipeline.sampling). Out: tensors, the same for
any number of ranks and threads. Begin with `loader.Loader`.
"""
