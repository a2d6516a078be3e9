"""Datasets: building shards from the manifest and a task, and reading them.

In: manifest.parquet, pipeline/tasks/<name>.yaml. Out: tars of webdataset, index.parquet, shards.json (described in `format`)
and versions.json. Begin with `build.build`, which carries out what `plan` decides; `encode` makes one shard. A
`shard_set.ShardSet` reads them, and a node keeps shards of a bucket in `cache`.
"""
