"""Datasets: from the manifest and a task to shards, and what is read of them.

In: manifest.parquet, pipeline/tasks/<name>.yaml. Out: tars of webdataset, index.parquet and shards.json, described in
`format`. Begin with `build.build`, which carries out what `plan` decides; `encode` makes one shard. A reader is a
`shard_set.ShardSet`, and a node keeps shards of a bucket in `cache`.
"""
