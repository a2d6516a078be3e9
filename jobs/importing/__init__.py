"""Importing: weights that others have published, translated to our networks' names.

In: a checkpoint file of a release (.safetensors, .pth, .caffemodel) and a recipe. Out: the weights of the recipe's network; a
version in a store is made of them by `jobs.publishing.foreign`. Begin with `weights.read_foreign`; each release is one file.
"""
