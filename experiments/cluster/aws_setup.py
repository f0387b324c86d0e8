"""What ray_cluster.yaml needs of an AWS account, made once: a bucket, a security group, a role for the head, one for workers.

    python experiments/cluster/aws_setup.py --ssh-from 203.0.113.7/32 [--region us-west-2]

Needs boto3 and credentials that may create them. It can be run again: policies and the security group's rules become what
they are here, so another address in --ssh-from takes the place of the one before. What else exists is left as it is.
"""

from __future__ import annotations

import argparse
import ipaddress
import json

import boto3
from botocore.exceptions import ClientError

HEAD, WORKER = "turnwise-head", "turnwise-worker"
GROUP = "turnwise"  # the security group; ray_cluster.yaml names it
CLUSTER = "turnwise"  # ray_cluster.yaml's cluster_name, which Ray writes on each machine as a tag
TAG = "ray-cluster-name"
RUNS = "runs"  # where searches live in the bucket (head.sh); MLflow's artifacts and its reader's password lie beside it
EC2_MAY_USE_IT = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}],
}
WRITES = ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
EXISTS = ("EntityAlreadyExists", "BucketAlreadyOwnedByYou", "InvalidGroup.Duplicate")


def main() -> None:
    parser = argparse.ArgumentParser(description="What ray_cluster.yaml needs of an AWS account.")
    parser.add_argument("--region", default="us-west-2", help="the one in ray_cluster.yaml")
    parser.add_argument(
        "--ssh-from",
        required=True,
        type=network,
        metavar="CIDR",
        help="the address you launch from, as the internet sees it: 203.0.113.7/32. Nobody else reaches the head",
    )
    arguments = parser.parse_args()
    region = arguments.region
    account = boto3.client("sts", region_name=region).get_caller_identity()["Account"]
    bucket = f"turnwise-{account}-{region}"
    make_bucket(bucket, region)
    open_to(arguments.ssh_from, make_group(region), region)
    iam = boto3.client("iam", region_name=region)
    worker = make_role(iam, WORKER, [may_read(bucket), may_write_checkpoints(bucket)])
    make_role(iam, HEAD, [may_read(bucket), may_write(bucket), *may_run_machines(account, region), may_give(worker)])
    print(f"bucket {bucket}, security group {GROUP}, roles {HEAD} and {WORKER}: ray up ray_cluster.yaml")


def network(text: str) -> str:
    """Returns the CIDR. Raises ArgumentTypeError for what is none, and for one that is everybody."""
    try:
        found = ipaddress.ip_network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; write one address as 203.0.113.7/32") from None
    if found.prefixlen == 0:
        raise argparse.ArgumentTypeError(f"{text} is the whole internet; name your own address")
    return str(found)


def make_bucket(bucket: str, region: str) -> None:
    """Private, as buckets are unless they are told otherwise. us-east-1 must not be named as a location."""
    where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    with_existing(boto3.client("s3", region_name=region).create_bucket, Bucket=bucket, **where)


def make_group(region: str) -> str:
    """The security group of all machines, in the default VPC. Returns its id."""
    ec2 = boto3.client("ec2", region_name=region)
    vpc = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"][0]["VpcId"]
    with_existing(ec2.create_security_group, GroupName=GROUP, VpcId=vpc, Description="Machines of ray_cluster.yaml")
    named = [{"Name": "group-name", "Values": [GROUP]}, {"Name": "vpc-id", "Values": [vpc]}]
    return ec2.describe_security_groups(Filters=named)["SecurityGroups"][0]["GroupId"]


def open_to(launcher: str, group: str, region: str) -> None:
    """Lets in the group itself on all ports, and the launcher by SSH. Ray adds no rule of its own where there are some."""
    ec2 = boto3.client("ec2", region_name=region)
    before = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]["IpPermissions"]
    if before:
        ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=before)
    addresses = {"IpRanges": [{"CidrIp": launcher}]}
    if ":" in launcher:
        addresses = {"Ipv6Ranges": [{"CidrIpv6": launcher}]}
    itself = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, **addresses}
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[itself, ssh])


def make_role(iam: object, name: str, statements: list[dict]) -> str:
    """A role with these statements only, and the instance profile of the same name. Returns the role's ARN."""
    with_existing(iam.create_role, RoleName=name, AssumeRolePolicyDocument=json.dumps(EC2_MAY_USE_IT))
    policy = {"Version": "2012-10-17", "Statement": statements}
    iam.put_role_policy(RoleName=name, PolicyName="turnwise", PolicyDocument=json.dumps(policy))
    with_existing(iam.create_instance_profile, InstanceProfileName=name)
    if not iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Roles"]:
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    return iam.get_role(RoleName=name)["Role"]["Arn"]


def may_read(bucket: str) -> dict:
    """Base models, conversations, prepared data, checkpoints, and the password of MLflow's reader."""
    arn = f"arn:aws:s3:::{bucket}"
    return {
        "Effect": "Allow",
        "Action": ["s3:GetObject", "s3:ListBucket", "s3:ListBucketMultipartUploads", "s3:GetBucketLocation"],
        "Resource": [arn, f"{arn}/*"],
    }


def may_write(bucket: str) -> dict:
    """The head writes prepared data, journals and MLflow's artifacts."""
    return {"Effect": "Allow", "Action": WRITES, "Resource": f"arn:aws:s3:::{bucket}/*"}


def may_write_checkpoints(bucket: str) -> dict:
    """What trials write, in SEARCH/: checkpoints, and Ray Train's mark of a slot.

    A worker computes what a model's files say, perhaps on a spot machine: it cannot write what a search has recorded, or what
    MLflow keeps. Names that end in / are empty marks of folders, which pyarrow makes.
    """
    runs = f"arn:aws:s3:::{bucket}/{RUNS}"
    names = ("/*/checkpoints/*", "/*/slots/*", "/", "/*/")
    return {"Effect": "Allow", "Action": WRITES, "Resource": [f"{runs}{name}" for name in names]}


def may_run_machines(account: str, region: str) -> list[dict]:
    """The autoscaler on the head starts and ends workers: machines of its own cluster, in its own region.

    A machine is started with the cluster's tag and from then on known by it. What a machine is started with (its image,
    network and disk) has no such tag.
    """
    arn = f"arn:aws:ec2:{region}:{account}"
    parts = ("network-interface", "security-group", "subnet", "volume", "key-pair", "spot-instances-request")
    there = {"StringEquals": {"aws:RequestedRegion": region}}
    return [
        {"Effect": "Allow", "Action": "ec2:Describe*", "Resource": "*", "Condition": there},
        {
            "Effect": "Allow",
            "Action": "ec2:RunInstances",
            "Resource": f"{arn}:instance/*",
            "Condition": {"StringEquals": {f"aws:RequestTag/{TAG}": CLUSTER}},
        },
        {
            "Effect": "Allow",
            "Action": "ec2:RunInstances",
            "Resource": [*(f"{arn}:{part}/*" for part in parts), f"arn:aws:ec2:{region}::image/*"],
        },
        {
            "Effect": "Allow",
            "Action": ["ec2:StartInstances", "ec2:StopInstances", "ec2:TerminateInstances"],
            "Resource": f"{arn}:instance/*",
            "Condition": {"StringEquals": {f"aws:ResourceTag/{TAG}": CLUSTER}},
        },
        {
            "Effect": "Allow",
            "Action": "ec2:CreateTags",
            "Resource": f"{arn}:*/*",
            "Condition": {"StringEquals": {"ec2:CreateAction": "RunInstances"}},
        },
        {
            "Effect": "Allow",
            "Action": "ec2:CreateTags",
            "Resource": f"{arn}:instance/*",
            "Condition": {"StringEquals": {f"aws:ResourceTag/{TAG}": CLUSTER}},
        },
        {
            "Effect": "Allow",
            "Action": ["ssm:GetParameter", "ssm:GetParameters"],
            "Resource": f"arn:aws:ssm:{region}::parameter/aws/service/*",
        },
    ]


def may_give(role: str) -> dict:
    """To start a machine with a role is to pass that role on: the workers' role only, and to machines only."""
    return {
        "Effect": "Allow",
        "Action": "iam:PassRole",
        "Resource": role,
        "Condition": {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}},
    }


def with_existing(make: object, **what: object) -> None:
    """Makes it, unless it is there."""
    try:
        make(**what)
    except ClientError as error:
        if error.response["Error"]["Code"] not in EXISTS:
            raise


if __name__ == "__main__":
    main()
