"""Create the buckets named on the command line, if they do not exist: `python create_buckets.py dvc mlflow`.

boto3 reads address and credentials from the environment: AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY. Exit code 1 and one line if the store refuses or is unreachable.
"""

from __future__ import annotations

import logging
import sys

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

log = logging.getLogger("create_buckets")
_THERE = ("BucketAlreadyOwnedByYou", "BucketAlreadyExists")


def create_buckets(names: list[str]) -> None:
    """Create each bucket, or leave it as it is. Raises boto3's exceptions."""
    client = boto3.client("s3", config=Config(retries={"max_attempts": 5, "mode": "standard"}))
    present = {bucket["Name"] for bucket in client.list_buckets().get("Buckets", [])}
    for name in names:
        if name in present:
            log.info("%s: exists already", name)
            continue
        try:
            client.create_bucket(Bucket=name)
        except ClientError as error:
            if error.response["Error"]["Code"] not in _THERE:
                raise
        log.info("%s: created", name)


def main() -> int:
    """Return the exit code."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO)
    if not sys.argv[1:]:
        log.error("usage: create_buckets.py NAME ...")
        return 2
    try:
        create_buckets(sys.argv[1:])
    except (BotoCoreError, ClientError) as error:
        log.error("error: the object store: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
