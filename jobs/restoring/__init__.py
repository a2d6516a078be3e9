"""Restoring: trained models by reference, and pictures of any size through them.

In: a checkpoint or a published version, image files. Out: image files. Begin with `restore.restore`; `checkpoint` finds and
loads models, `tiles` bounds the memory.
"""
