"""Datasets: building shards from the manifest and a task, and reading them.

In: the manifest, pipeline/tasks/<name>.yaml. Out: tars of webdataset, tables and shards.json, described in `format`. Begin with
`build.build`, which carries out what `plan` decides; `kept` has the shards that exist already, `encode` makes one, `assemble`
puts them together. A `shard_set.ShardSet` reads them, and a node keeps shards of a bucket in `cache`.
"""
