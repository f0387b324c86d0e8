# Sourced on the head before Ray starts (ray_cluster.yaml): jobs are children of Ray and see what is exported here.
#
# TURNWISE_STORAGE      where searches live: s3://turnwise-ACCOUNT-REGION/runs, made by aws_setup.py
# MLFLOW_TRACKING_URI   an MLflow server of your own, if it was set before; else one that is started here

export AWS_DEFAULT_REGION=${AWS_DEFAULT_REGION:-us-west-2}
account=$(python -c 'import boto3; print(boto3.client("sts").get_caller_identity()["Account"])') || return 1
export TURNWISE_STORAGE=${TURNWISE_STORAGE:-s3://turnwise-$account-$AWS_DEFAULT_REGION/runs}
export RAY_AUTH_MODE=token
export RAY_JOB_STOP_WAIT_TIME_S=180   # `ray job stop` lets running trials write a checkpoint; by default it kills after 3 s

if [ -z "${MLFLOW_TRACKING_URI:-}" ]; then
  # By the machine's own address: the winner is proven on a GPU machine, which reads it from here. The security group lets
  # in nobody but the cluster.
  address=$(hostname -I | awk '{print $1}')
  export MLFLOW_TRACKING_URI=http://$address:5000
  if ! python -c "import urllib.request as u; u.urlopen('$MLFLOW_TRACKING_URI/health', timeout=3)" 2>/dev/null; then
    MLFLOW_HOME=${MLFLOW_HOME:-$HOME/mlflow}
    mkdir -p "$MLFLOW_HOME"
    export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false   # features of MLflow that nobody here uses, in seven processes
    nohup mlflow server --host "$address" --port 5000 --workers 2 \
      --backend-store-uri "sqlite:///$MLFLOW_HOME/mlflow.db" \
      --artifacts-destination "${TURNWISE_STORAGE%/*}/mlflow" > "$MLFLOW_HOME/server.log" 2>&1 &
  fi
fi
