"""Hands the credentials of MLflow's reader from the head to the workers, by an object that the roles of both may read.

    python reader.py put ~/mlflow/reader s3://BUCKET/reader/mlflow            on the head (head.sh)
    python reader.py get s3://BUCKET/reader/mlflow ~/.mlflow/credentials      on a worker (worker.sh)

Where the head uses an MLflow of your own there is no such object, and `get` writes nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

import boto3
from botocore.exceptions import ClientError


def put(file: str, uri: str) -> None:
    boto3.client("s3").put_object(**place(uri), Body=Path(file).read_bytes())


def get(uri: str, file: str) -> None:
    """The file is readable by this user alone."""
    try:
        found = boto3.client("s3").get_object(**place(uri))
    except ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchKey":
            return
        raise
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(found["Body"].read())


def place(uri: str) -> dict[str, str]:
    parts = urlsplit(uri)
    return {"Bucket": parts.netloc, "Key": parts.path.lstrip("/")}


if __name__ == "__main__":
    verb, source, target = sys.argv[1:]
    {"put": put, "get": get}[verb](source, target)
