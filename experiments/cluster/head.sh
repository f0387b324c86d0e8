# Sourced on the head before Ray starts (ray_cluster.yaml): jobs are children of Ray and see what is exported here.
#
# TURNWISE_STORAGE      where searches live: s3://turnwise-ACCOUNT-REGION/runs, made by aws_setup.py
# MLFLOW_TRACKING_URI   an MLflow server of your own, if it was set before; else one that is started here

export AWS_DEFAULT_REGION=${AWS_DEFAULT_REGION:-us-west-2}
account=$(python -c 'import boto3; print(boto3.client("sts").get_caller_identity()["Account"])') || return 1
bucket=s3://turnwise-$account-$AWS_DEFAULT_REGION
export TURNWISE_STORAGE=${TURNWISE_STORAGE:-$bucket/runs}
export RAY_AUTH_MODE=token
export RAY_JOB_STOP_WAIT_TIME_S=180   # `ray job stop` lets running trials write a checkpoint; by default it kills after 3 s

if [ -z "${MLFLOW_TRACKING_URI:-}" ]; then
  # By the machine's own address: the winner is proven on a GPU machine, which reads it from here. The security group lets
  # in nobody but the cluster, and MLflow nobody without a password: mlflow_server.py makes one for the head, and one that
  # only reads, which worker.sh fetches from the bucket. Clients find theirs in ~/.mlflow/credentials; no environment has it.
  here=$(dirname "${BASH_SOURCE[0]}")
  MLFLOW_HOME=${MLFLOW_HOME:-$HOME/mlflow}
  python "$here/mlflow_server.py" --home "$MLFLOW_HOME" --host 0.0.0.0 --artifacts "$bucket/mlflow" || return 1
  install -D -m 600 "$MLFLOW_HOME/admin" ~/.mlflow/credentials
  python "$here/reader.py" put "$MLFLOW_HOME/reader" "$bucket/reader/mlflow" || return 1
  export MLFLOW_TRACKING_URI=http://$(hostname -I | awk '{print $1}'):5000
fi
