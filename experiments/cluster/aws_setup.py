"""What ray_cluster.yaml needs of an AWS account, made once: a bucket, and a role for the head and one for the workers.

    python experiments/cluster/aws_setup.py [--region us-west-2]

Needs boto3 and credentials that may create them. What exists already is left as it is, so it can be run again.
"""

from __future__ import annotations

import argparse
import json

import boto3
from botocore.exceptions import ClientError

HEAD, WORKER = "turnwise-head", "turnwise-worker"
EC2_MAY_USE_IT = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}],
}


def main() -> None:
    parser = argparse.ArgumentParser(description="The bucket and the roles that ray_cluster.yaml needs.")
    parser.add_argument("--region", default="us-west-2", help="the one in ray_cluster.yaml")
    region = parser.parse_args().region
    account = boto3.client("sts", region_name=region).get_caller_identity()["Account"]
    bucket = f"turnwise-{account}-{region}"
    make_bucket(bucket, region)
    iam = boto3.client("iam", region_name=region)
    worker = make_role(iam, WORKER, [may_use(bucket)])
    make_role(iam, HEAD, [may_use(bucket), may_run_machines(), may_give(worker)])
    print(f"bucket {bucket}, roles {HEAD} and {WORKER}: ray up ray_cluster.yaml")


def make_bucket(bucket: str, region: str) -> None:
    """Private, as buckets are unless they are told otherwise. us-east-1 must not be named as a location."""
    where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    with_existing(boto3.client("s3", region_name=region).create_bucket, Bucket=bucket, **where)


def make_role(iam: object, name: str, statements: list[dict]) -> str:
    """A role with these statements only, and the instance profile of the same name. Returns the role's ARN."""
    with_existing(iam.create_role, RoleName=name, AssumeRolePolicyDocument=json.dumps(EC2_MAY_USE_IT))
    policy = {"Version": "2012-10-17", "Statement": statements}
    iam.put_role_policy(RoleName=name, PolicyName="turnwise", PolicyDocument=json.dumps(policy))
    with_existing(iam.create_instance_profile, InstanceProfileName=name)
    if not iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Roles"]:
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    return iam.get_role(RoleName=name)["Role"]["Arn"]


def may_use(bucket: str) -> dict:
    """Searches, checkpoints and MLflow's artifacts lie in the bucket, and nothing else of S3 is needed."""
    arn = f"arn:aws:s3:::{bucket}"
    return {
        "Effect": "Allow",
        "Action": ["s3:*Object", "s3:ListBucket*", "s3:*MultipartUpload*"],
        "Resource": [arn, f"{arn}/*"],
    }


def may_run_machines() -> dict:
    """The autoscaler on the head starts and ends workers, and looks up the image they start from."""
    actions = [
        "ec2:RunInstances",
        "ec2:StartInstances",
        "ec2:StopInstances",
        "ec2:TerminateInstances",
        "ec2:CreateTags",
    ]
    return {"Effect": "Allow", "Action": [*actions, "ec2:Describe*", "ssm:GetParameter*"], "Resource": "*"}


def may_give(role: str) -> dict:
    """To start a machine with a role is to pass that role on."""
    return {"Effect": "Allow", "Action": "iam:PassRole", "Resource": role}


def with_existing(make: object, **what: object) -> None:
    """Makes it, unless it is there."""
    try:
        make(**what)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("EntityAlreadyExists", "BucketAlreadyOwnedByYou"):
            raise


if __name__ == "__main__":
    main()
