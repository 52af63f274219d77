#!/usr/bin/env bash
# Train on the GPUs of two machines. Run the same command on both: the same code, configuration
# and data must be in the same folder on each.
#
#   bash scripts/train_two_hosts.sh HOST:PORT GPUS CONFIG [ARGUMENT of tools/train.py...]
#   bash scripts/train_two_hosts.sh 10.0.0.1:8090 0,1,2,3 configs/HarDNet/HarDNet68.yaml
#
# HOST:PORT is the address of one of the two, and a free port there that the other can reach.
set -euo pipefail
# shellcheck source=scripts/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

[ $# -ge 3 ] || { usage; exit 2; }
master="$1" gpus="$2" config="$3"
shift 3
[[ "$master" =~ ^[^:/[:space:]]+:[0-9]+$ ]] || stop "expected HOST:PORT such as 10.0.0.1:8090, got '$master'"
check_launch "$gpus" "$config"
exec "$(training_python)" -m paddle.distributed.launch --nnodes=2 --master="$master" --gpus="$gpus" \
    tools/train.py -c "$config" "$@"
