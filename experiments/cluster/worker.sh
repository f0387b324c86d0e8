# Sourced on a worker before Ray starts (ray_cluster.yaml): with what the head has left for it, it may read MLflow.

export AWS_DEFAULT_REGION=${AWS_DEFAULT_REGION:-us-west-2}
account=$(python -c 'import boto3; print(boto3.client("sts").get_caller_identity()["Account"])') || return 1
python "$(dirname "${BASH_SOURCE[0]}")/reader.py" get "s3://turnwise-$account-$AWS_DEFAULT_REGION/reader/mlflow" \
  ~/.mlflow/credentials || return 1
