"""What a team shares through one bucket: the remote of DVC, the shard store, runs and models.

In: .dvc/config, params.yaml, git's revisions and what a bucket holds. Out: settings, findings, copies, and what nobody names.
Begin with `commands`, which lists what there is; `tracked` knows which objects a revision names, `remote` where they are.
"""
