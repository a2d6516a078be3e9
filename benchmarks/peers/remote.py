"""The peers that read from a bucket: the same pairs, uploaded, and read through a cache that is empty each time.

Each function of REMOTE takes the pairs, a folder, and the URI of a place in a bucket, and returns what opens batches of
epochs that hold each pair once. Credentials and the endpoint come from boto3's variables.
"""

import os
import tempfile
from pathlib import Path

import boto3
import webdataset

from pipeline.storage import storage

from .chunks import file_pixels, litdata, write_chunks
from .common import BATCH, Batches, Open, Pair
from .mosaic import mosaic, write_arrays
from .tars import shuffled_tars, write_tars


def upload(place: Path, uri: str) -> None:
    """Copy the files below a folder into a bucket."""
    bucket = storage(uri)
    for path in place.rglob("*"):
        if path.is_file():
            bucket.write(path.relative_to(place).as_posix(), path)


def remote_tars(pairs: list[Pair], place: Path, uri: str) -> Open:
    """webdataset with its cache. It reads URLs by curl; signed ones spare it a start of AWS's command for each shard."""
    write_tars(pairs, place, 1)
    upload(place, uri)
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    urls = [
        client.generate_presigned_url("get_object", {"Bucket": bucket, "Key": f"{prefix}/{path.name}"})
        for path in sorted(place.glob("*.tar"))
    ]

    def run() -> Batches:
        data = shuffled_tars(urls, cache_dir=tempfile.mkdtemp())
        loader = webdataset.WebLoader(data, batch_size=BATCH, num_workers=0)
        while True:
            yield from loader

    return run


def remote_mosaic(pairs: list[Pair], place: Path, uri: str) -> Open:
    """MDS of raw arrays."""
    write_arrays(pairs, place)
    upload(place, uri)
    if "AWS_ENDPOINT_URL" in os.environ:
        os.environ["S3_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"]  # the name that it looks for

    def run() -> Batches:
        yield from mosaic(lambda pixels: pixels, 1, drop_last=False, remote=uri, local=tempfile.mkdtemp())()

    return run


def remote_litdata(pairs: list[Pair], place: Path, uri: str) -> Open:
    """Chunks of raw arrays."""
    write_chunks(pairs, place, file_pixels)
    from litdata.streaming import downloader  # type: ignore[import-not-found]

    # It has no option for its client, which refuses an endpoint without TLS.
    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = "true"
    upload(place, uri)

    def run() -> Batches:
        yield from litdata(lambda pixels: pixels, 1, uri, drop_last=False, cache_dir=tempfile.mkdtemp())()

    return run


REMOTE = {"mosaic, raw": remote_mosaic, "litdata, raw": remote_litdata, "webdataset, PNG": remote_tars}
