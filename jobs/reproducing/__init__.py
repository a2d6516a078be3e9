"""Training a published version anew, from what the version says of itself, in a folder of its own.

In: a version of a store. Out: a clone of its repository with data, environment and a store of its own, and a table of what is
equal. Nothing is written into the version's store or DVC's remote. Begin with `reproduce.reproduce`.
"""
