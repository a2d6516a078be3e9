"""Raw photographs: from folders and buckets as they were published, to a table of every image.

In: the folders that params.yaml names, read by pipeline.layouts. Out: the manifest, rejects.parquet and leaks.parquet.
Begin with `manifest.ingest`; `listing` says whether the files changed; how a file becomes pixels is in pipeline.images.
"""
