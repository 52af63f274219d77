#!/usr/bin/env bash
# Train on several GPUs of this machine.
#
#   bash scripts/train_multi_gpu.sh GPUS CONFIG [ARGUMENT of tools/train.py...]
#   bash scripts/train_multi_gpu.sh 0,1,2,3 configs/HarDNet/HarDNet68.yaml -o Global.seed=1
#
# The batch size of the configuration is that of one GPU. One log per GPU: log/workerlog.N
set -euo pipefail
# shellcheck source=scripts/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

[ $# -ge 2 ] || { usage; exit 2; }
gpus="$1" config="$2"
shift 2
check_launch "$gpus" "$config"
exec "$(training_python)" -m paddle.distributed.launch --gpus="$gpus" tools/train.py -c "$config" "$@"
