"""ray_cluster.yaml and its companions, by Ray's own loader, Kubernetes' own schema, and an AWS that runs on loopback."""

import copy
import http.server
import json
import logging
import os
import runpy
import shutil
import stat
import subprocess
import sys
import threading
import urllib.request
import zipfile
from pathlib import Path

import boto3
import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from moto.server import ThreadedMotoServer
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import (
    TAG_RAY_LAUNCH_CONFIG,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)
from ray.scripts.scripts import drain_node
from ray.train.v2._internal.execution.storage import StorageContext

from components.cluster.capacity.autoscaler_config import capacity_of_config
from components.cluster.capacity.cluster_capacity import check_capacity
from components.experiment.load_experiment import load_experiment
from components.storage import object_store
from components.storage.open_folder import folder_at
from components.storage.retry import StorageError
from tests.support.servers import S3Server
from workflows import tune

ROOT = Path(__file__).parents[2]
FILES = ROOT / "experiments" / "cluster"
REGION = "us-west-2"
LAUNCHER = "203.0.113.7/32"


def launched():
    """ray_cluster.yaml as `ray up` sees it: with Ray's defaults, and proven by its schema."""
    config = prepare_config(yaml.safe_load((ROOT / "ray_cluster.yaml").read_text()))
    validate_config(config)
    return config


def kubernetes(name="raycluster"):
    return yaml.safe_load((FILES / f"{name}.yaml").read_text())


def schema(kind):
    return json.loads((ROOT / "tests" / "data" / f"{kind}.schema.json").read_text())


def workers():
    return {name: node for name, node in launched()["available_node_types"].items() if name != "head"}


def test_the_head_trains_nothing_and_the_workers_come_with_the_trials():
    config = launched()
    assert config["available_node_types"][config["head_node_type"]]["resources"] == {"CPU": 0}
    assert {name: (node["min_workers"], node["max_workers"]) for name, node in workers().items()} == {
        "lora": (0, 8),
        "full": (0, 2),
    }
    assert {name: node["resources"]["GPU"] for name, node in workers().items()} == {"lora": 1, "full": 8}
    assert {name: node["labels"] for name, node in workers().items()} == {
        "lora": {"turnwise/method": "lora"},
        "full": {"turnwise/method": "full"},
    }


def test_it_has_room_for_the_chatglm3_search_with_each_method_on_its_own_machines():
    labels = [f"resources.{method}.node_labels={{turnwise/method: {method}}}" for method in ("lora", "full")]
    experiment = load_experiment(ROOT / "experiments" / "chatglm3_lora_vs_full.yaml", labels)
    room = capacity_of_config(launched())
    check_capacity(experiment, room)
    assert room.trials_at_once(experiment.resources.lora) == 8
    assert room.trials_at_once(experiment.resources.full) == 2


def test_the_images_and_the_packages_are_the_versions_that_are_tested_here():
    docker = launched()["docker"]
    for image in (docker["head_image"], docker["worker_image"], (FILES / "Dockerfile").read_text()):
        assert f"rayproject/ray:{ray.__version__}-py311" in image
    assert kubernetes()["spec"]["rayVersion"] == ray.__version__
    pinned = (ROOT / "requirements.txt").read_text()
    assert f"ray[default,train,tune]=={ray.__version__}\n" in pinned


def test_every_machine_has_the_token_and_demands_it():
    config = launched()
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    assert "export RAY_AUTH_MODE=token" in (FILES / "head.sh").read_text()
    assert "export RAY_AUTH_MODE=token" in config["worker_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    assert kubernetes()["spec"]["authOptions"] == {"mode": "token"}


def test_head_and_workers_have_accounts_and_passwords_of_their_own():
    spec = kubernetes()["spec"]
    head, *others = (group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]))
    assert head["serviceAccountName"] == "turnwise-head"
    assert {pod["serviceAccountName"] for pod in others} == {"turnwise-worker"}
    assert {pod["automountServiceAccountToken"] for pod in others} == {False}  # a worker asks Kubernetes for nothing
    secrets = [pod["containers"][0]["envFrom"] for pod in (head, *others)]
    names = [source["secretRef"]["name"] for (source,) in secrets]
    assert names == ["turnwise-mlflow-head", "turnwise-mlflow-worker", "turnwise-mlflow-worker"]


def test_what_is_mounted_lies_where_it_is_looked_for():
    for local in launched()["file_mounts"].values():
        assert local.startswith("~") or (ROOT / local).exists(), local


def test_the_kubernetes_manifest_keeps_to_its_schema():
    manifest = kubernetes()
    jsonschema.validate(manifest, schema("raycluster"))
    for group in [manifest["spec"]["headGroupSpec"], *manifest["spec"]["workerGroupSpecs"]]:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **copy.deepcopy(group["template"])}
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_a_job_and_a_weekly_job_make_the_same_cluster_for_the_same_command():
    job, weekly = kubernetes("rayjob"), kubernetes("raycronjob")
    jsonschema.validate(job, schema("rayjob"))
    jsonschema.validate(weekly, schema("raycronjob"))
    template = weekly["spec"]["jobTemplate"]
    jsonschema.validate(template, schema("rayjob")["properties"]["spec"])
    assert job["spec"]["rayClusterSpec"] == template["rayClusterSpec"] == kubernetes()["spec"]
    assert job["spec"]["shutdownAfterJobFinishes"]
    differing = {key: (value, template[key]) for key, value in job["spec"].items() if template[key] != value}
    retried, command = differing.pop("backoffLimit"), differing.pop("entrypoint")
    assert differing == {}
    assert retried == (3, 0)  # a retry goes on with the search; of one with --new it would begin another
    assert command[1] == f"{command[0]} --new"
    seconds_between = 7 * 24 * 3600
    assert template["activeDeadlineSeconds"] + template["ttlSecondsAfterFinished"] < seconds_between


def test_the_jobs_command_parses_and_its_project_is_in_the_image():
    copied = [line.split()[2:] for line in (FILES / "Dockerfile").read_text().splitlines() if "--chown" in line]
    for name in ("rayjob", "raycronjob"):
        spec = kubernetes(name)["spec"]
        spec = spec.get("jobTemplate", spec)
        _python, program, *arguments = spec["entrypoint"].split()
        assert load_experiment(ROOT / tune.make_parser().parse_args(arguments).experiment, []).name
        place = yaml.safe_load(spec["runtimeEnvYAML"])["working_dir"]
        assert copied == [[room, f"{place}/{room}"] for room in ("components", "workflows", "experiments")]
        assert program == "workflows/tune.py"


def test_both_clusters_have_the_same_numbers():
    config, manifest = launched(), kubernetes()["spec"]
    assert manifest["autoscalerOptions"]["idleTimeoutSeconds"] == 60 * config["idle_timeout_minutes"]
    assert manifest["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = {group["groupName"]: group for group in manifest["workerGroupSpecs"]}
    assert groups.keys() == workers().keys()
    for name, node in workers().items():
        group = groups[name]
        assert (group["minReplicas"], group["maxReplicas"]) == (node["min_workers"], node["max_workers"])
        assert group["labels"] == node["labels"]
        started = {"CPU": group["rayStartParams"]["num-cpus"], "GPU": group["rayStartParams"]["num-gpus"]}
        assert started == {resource: str(amount) for resource, amount in node["resources"].items()}
        pod = group["template"]["spec"]
        assert pod["nodeSelector"]["node.kubernetes.io/instance-type"] == node["node_config"]["InstanceType"]
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == str(node["resources"]["GPU"])


def uploaded(folder, target):
    """What `ray job submit --working-dir` sends of a folder: name -> bytes."""
    create_package(
        str(folder),
        target,
        include_gitignore=True,
        excludes=get_runtime_env_default_excludes(),
        logger=logging.getLogger(),
    )
    with zipfile.ZipFile(target) as package:
        return {info.filename: info.file_size for info in package.infolist() if not info.is_dir()}


def test_a_job_takes_along_the_project_and_nothing_that_grows(tmp_path):
    sent = uploaded(ROOT, tmp_path / "package.zip")
    assert {"workflows/tune.py", "experiments/quickstart.yaml", "experiments/data/quickstart.jsonl"} <= sent.keys()
    assert (tmp_path / "package.zip").stat().st_size < 8_000_000  # stored, not compressed; twice what it is


def test_a_job_takes_along_no_key_and_nothing_a_search_has_left(tmp_path):
    shutil.copy(ROOT / ".gitignore", tmp_path)
    for name in (
        ".env",
        ".env.prod",
        "head.pem",
        "mlflow.db",
        "runs/x/journal.jsonl",
        ".venv/bin/python",
        "experiments/mine.yaml",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert uploaded(tmp_path, tmp_path.with_suffix(".zip")).keys() == {".gitignore", "experiments/mine.yaml"}


@pytest.fixture(scope="module")
def aws():
    """An AWS account on loopback."""
    with pytest.MonkeyPatch.context() as patch:
        server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": REGION,
        }.items():
            patch.setenv(name, value)
        yield
        server.stop()


@pytest.fixture(scope="module")
def account(aws):
    """The account after aws_setup.py, which may be run again. Its bucket."""
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, FILES / "aws_setup.py", "--ssh-from", LAUNCHER],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    return f"turnwise-123456789012-{REGION}"


def test_the_account_gets_a_bucket_and_two_roles_that_may_what_they_need(account):
    assert [bucket["Name"] for bucket in boto3.client("s3").list_buckets()["Buckets"]] == [account]
    iam = boto3.client("iam")
    policies = {
        name: str(iam.get_role_policy(RoleName=name, PolicyName="turnwise")["PolicyDocument"])
        for name in ("turnwise-head", "turnwise-worker")
    }
    assert "iam:PassRole" in policies["turnwise-head"]
    assert not any(word in policies["turnwise-worker"] for word in ("ec2:", "iam:", "ssm:"))


def policy_of(role):
    return boto3.client("iam").get_role_policy(RoleName=role, PolicyName="turnwise")["PolicyDocument"]


def test_the_head_runs_and_ends_only_machines_of_its_own_cluster_and_region(account):
    cluster = launched()["cluster_name"]
    may = {}
    for statement in policy_of("turnwise-head")["Statement"]:
        actions = statement["Action"]
        for action in [actions] if isinstance(actions, str) else actions:
            may.setdefault(action, []).append((statement["Resource"], statement.get("Condition")))
    machines = f"arn:aws:ec2:{REGION}:123456789012:instance/*"
    known = {"StringEquals": {"aws:ResourceTag/ray-cluster-name": cluster}}
    for action in ("StartInstances", "StopInstances", "TerminateInstances"):
        assert may.pop(f"ec2:{action}") == [(machines, known)]
    machine, parts = may.pop("ec2:RunInstances")
    assert machine == (machines, {"StringEquals": {"aws:RequestTag/ray-cluster-name": cluster}})
    assert not any("instance/" in resource or resource == "*" for resource in parts[0])
    assert [condition for _, condition in may.pop("ec2:CreateTags")] == [
        {"StringEquals": {"ec2:CreateAction": "RunInstances"}},
        known,
    ]
    assert may.pop("ec2:Describe*") == [("*", {"StringEquals": {"aws:RequestedRegion": REGION}})]
    public = f"arn:aws:ssm:{REGION}::parameter/aws/service/*"  # no account: these are AWS's own
    assert {name: may.pop(name) for name in list(may) if name.startswith("ssm:")} == {
        name: [(public, None)] for name in ("ssm:GetParameter", "ssm:GetParameters")
    }
    ((role, condition),) = may.pop("iam:PassRole")
    assert role.endswith(":role/turnwise-worker")
    assert condition == {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}
    assert all(name.startswith("s3:") for name in may)


def test_nobody_but_the_launcher_and_the_cluster_itself_reaches_a_machine(account):
    (group,) = boto3.client("ec2").describe_security_groups(Filters=[{"Name": "group-name", "Values": ["turnwise"]}])[
        "SecurityGroups"
    ]
    assert launched()["provider"]["security_group"] == {"GroupName": "turnwise"}
    ours, ssh = sorted(group["IpPermissions"], key=lambda rule: rule["IpProtocol"])
    assert (ours["IpRanges"], [pair["GroupId"] for pair in ours["UserIdGroupPairs"]]) == ([], [group["GroupId"]])
    assert (ssh["FromPort"], ssh["ToPort"], ssh["UserIdGroupPairs"]) == (22, 22, [])
    assert [allowed["CidrIp"] for allowed in ssh["IpRanges"]] == [LAUNCHER]


@pytest.mark.parametrize("address", ["0.0.0.0/0", "::/0", "me", "203.0.113.7/8"])
def test_a_launcher_is_an_address(address):
    done = subprocess.run(
        [sys.executable, FILES / "aws_setup.py", "--ssh-from", address],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "address" in done.stderr


class Account:
    """A storage of an account that keeps to its policies, entered by the role of the head or of a worker."""

    def __init__(self, server, patch):
        self.server, self.patch = server, patch
        self.given = {}
        for role in ("turnwise-head", "turnwise-worker"):
            iam = boto3.client("iam")
            iam.create_user(UserName=role)  # a role is taken on by machines only
            iam.put_user_policy(UserName=role, PolicyName="p", PolicyDocument=json.dumps(policy_of(role)))
            # AWS asks for s3:ListBucket where moto asks for this.
            asked = {"Effect": "Allow", "Action": "s3:HeadBucket", "Resource": "*"}
            policy = {"Version": "2012-10-17", "Statement": [asked]}
            iam.put_user_policy(UserName=role, PolicyName="of-moto", PolicyDocument=json.dumps(policy))
            self.given[role] = iam.create_access_key(UserName=role)["AccessKey"]
        from_now_on = urllib.request.Request(
            f"{server.uri}/moto-api/reset-auth", data=b"0", headers={"Content-Type": "text/plain"}
        )
        urllib.request.urlopen(from_now_on, timeout=5).close()

    def enter(self, role):
        key = self.given[f"turnwise-{role}"]
        self.patch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        self.patch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        object_store._client.cache_clear()


@pytest.fixture
def guarded(tmp_path, monkeypatch):
    """(Account, its bucket) with a search's folder that the head has begun."""
    server = S3Server(tmp_path)
    try:
        server.start()
        for name, value in {**server.client_environment(), "AWS_DEFAULT_REGION": REGION}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("sys.argv", ["aws_setup.py", "--ssh-from", LAUNCHER])
        runpy.run_path(str(FILES / "aws_setup.py"), run_name="__main__")
        yield Account(server, monkeypatch), f"turnwise-123456789012-{REGION}"
    finally:
        object_store._client.cache_clear()
        server.kill()


OF_THE_HEAD = {  # folder in the bucket -> a file in it
    "runs/toy/search-1": "journal.jsonl",
    "runs/toy/search-2": "search.json",
    "runs/prepared/abc": "tokens",
    "mlflow/1": "model.json",
    "models/base": "config.json",
    "reader": "mlflow",
}


def test_a_worker_writes_checkpoints_and_no_record_of_a_search(guarded):
    account, bucket = guarded
    account.enter("head")
    places = {folder_at(f"s3://{bucket}/{folder}"): name for folder, name in OF_THE_HEAD.items()}
    for place, name in places.items():
        place.write_text(name, "of the head")
    search = folder_at(f"s3://{bucket}/runs/toy/search-1")
    account.enter("worker")
    checkpoint = search / "checkpoints" / "trial" / "step_000001"
    checkpoint.publish(lambda scratch: (scratch / "weights").write_text("1"))
    assert checkpoint.is_complete()
    checkpoint.delete_file("weights")
    StorageContext(str(search / "slots"), "slot-1")  # what Ray Train writes when a slot starts
    for place, name in places.items():
        assert place.read_text(name) == "of the head"
        with pytest.raises(StorageError, match="ACCESS_DENIED"):
            place.write_text(name, "of a worker")
        with pytest.raises(StorageError, match="ACCESS_DENIED"):
            place.delete_file(name)


def test_ray_starts_a_machine_of_each_type_with_its_role(account, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes the key pair it makes to ~/.ssh
    (tmp_path / ".ssh").mkdir()
    config = launched()
    for node in config["available_node_types"].values():
        assert node["node_config"]["ImageId"].startswith("resolve:ssm:/aws/service/deeplearning/ami/")
        node["node_config"]["ImageId"] = boto3.client("ec2").describe_images()["Images"][0]["ImageId"]
    config = bootstrap_aws(config)
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for name, node in config["available_node_types"].items():
        tags = {
            TAG_RAY_NODE_KIND: "worker",
            TAG_RAY_NODE_NAME: name,
            TAG_RAY_NODE_STATUS: "uninitialized",
            TAG_RAY_USER_NODE_TYPE: name,
            TAG_RAY_LAUNCH_CONFIG: name,
        }
        (machine,) = provider.create_node(node["node_config"], tags, 1).values()
        assert machine.instance_type == launched()["available_node_types"][name]["node_config"]["InstanceType"]
        role = "turnwise-head" if name == "head" else "turnwise-worker"
        assert machine.iam_instance_profile["Arn"].endswith(f"/{role}")
        assert (machine.instance_lifecycle == "spot") == (name == "lora")
        assert [group["GroupName"] for group in machine.security_groups] == ["turnwise"]  # and none that Ray made


def test_the_head_names_storage_by_account_and_keeps_its_tracking_server(account):
    told = {"MLFLOW_TRACKING_URI": "http://mlflow.internal:5000"}
    said = _sourced(told, "echo $TURNWISE_STORAGE $MLFLOW_TRACKING_URI $RAY_AUTH_MODE $RAY_JOB_STOP_WAIT_TIME_S")
    assert said.split() == [f"s3://{account}/runs", "http://mlflow.internal:5000", "token", "180"]


def test_the_heads_credentials_are_found_by_a_worker_and_by_nobody_else(account, tmp_path):
    (tmp_path / "reader").write_text("[mlflow]")
    home = {"HOME": str(tmp_path)}
    found = tmp_path / ".mlflow" / "credentials"
    assert "source /home/ray/turnwise/worker.sh &&" in launched()["worker_start_ray_commands"][-1]
    _sourced(home, "true", "worker.sh")  # an MLflow of your own: nothing was left
    assert not found.exists()
    found.parent.mkdir()
    found.write_text("another reader's, and open to all")
    _sourced(home, f"python {FILES}/reader.py put {tmp_path}/reader s3://{account}/reader/mlflow", "worker.sh")
    _sourced(home, "true", "worker.sh")
    assert (found.read_text(), stat.S_IMODE(found.stat().st_mode)) == ("[mlflow]", 0o600)


def _sourced(environment, then, file="head.sh"):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", f"source {FILES / file} && {then}"],
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Metadata(http.server.BaseHTTPRequestHandler):
    """What a spot machine is told about itself: at first no notice, then one."""

    asked = 0

    def do_PUT(self):
        self._say(200, "a-session")

    def do_GET(self):
        Metadata.asked += 1
        assert self.headers["X-aws-ec2-metadata-token"] == "a-session"
        self._say(*((404, "") if Metadata.asked == 1 else (200, '{"action": "terminate"}')))

    def _say(self, status, text):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        """Nothing to stderr."""


def test_a_spot_machine_that_is_told_to_go_has_its_node_drained(tmp_path):
    ray_here = tmp_path / "ray"
    ray_here.write_text('#!/bin/bash\nprintf "%s\\n" "$@" > "$(dirname "$0")/said"\n')
    ray_here.chmod(0o755)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        environment = {
            **os.environ,
            "IMDS_URL": f"http://127.0.0.1:{server.server_port}",
            "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        }
        subprocess.run(["bash", FILES / "spot_watch.sh", "10.0.0.1:6379"], env=environment, timeout=60, check=True)
    finally:
        server.shutdown()
        server.server_close()
    command, *arguments = (tmp_path / "said").read_text().splitlines()
    assert command == "drain-node"
    # Ray's own command line takes them.
    parsed = drain_node.make_context("drain-node", arguments).params
    assert (parsed["address"], parsed["reason"]) == ("10.0.0.1:6379", "DRAIN_NODE_REASON_PREEMPTION")
    assert parsed["deadline_remaining_seconds"] == 110
