#!/usr/bin/env bash
# On a spot machine: asks AWS every 5 seconds whether the machine is about to be taken back, and if so tells Ray to drain it.
# The trials on it then write a checkpoint, and nothing new is placed here. AWS gives two minutes.
#
#   bash spot_watch.sh HEAD_IP:6379
#
# Asked by IMDSv2 (a session token first). No instance-action means no notice: AWS answers 404. On-demand machines never get one.
set -u
address=$1
metadata=${IMDS_URL:-http://169.254.169.254}

ask() {  # PATH: what the metadata service says, or nothing
  local token
  token=$(curl -sf -X PUT "$metadata/latest/api/token" -H "X-aws-ec2-metadata-token-ttl-seconds: 60") || return 1
  curl -sf -H "X-aws-ec2-metadata-token: $token" "$metadata/latest/meta-data/$1"
}

until ask spot/instance-action > /dev/null; do sleep 5; done
# Without --node-id it is the node of this machine.
RAY_ADDRESS=$address ray drain-node --address "$address" --reason DRAIN_NODE_REASON_PREEMPTION \
  --reason-message "AWS takes this spot machine back" --deadline-remaining-seconds 110
