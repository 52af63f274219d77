#!/usr/bin/env bash
# Train HarDNet39_ds on scikit-learn's handwritten digits, evaluate it and classify one image.
#
#   bash scripts/quickstart.sh            first run: install, train; later runs: seconds
#   bash scripts/quickstart.sh --retrain  train again
#   PYTHON=/path/to/python3.11 bash scripts/quickstart.sh
set -euo pipefail
# shellcheck source=scripts/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

readonly CONFIG=configs/HarDNet/HarDNet39_ds_digits.yaml
readonly DATA=dataset/digits
readonly RUN=output/HarDNet39_ds
readonly FINISHED="$RUN/quickstart.finished"

# What a finished run is known by: its resolved configuration and its best weights.
run_fingerprint() { cat "$CONFIG" "$RUN/config.yaml" "$RUN/best_model.pdparams" 2>/dev/null | cksum; }

run_finished() {
    [ -f "$RUN/best_model.pdparams" ] && [ "$(cat "$FINISHED" 2>/dev/null)" = "$(run_fingerprint)" ]
}

# Training writes over RUN, where a run on other data, perhaps of days, may lie.
check_run_folder() {
    [ ! -f "$RUN/config.yaml" ] || grep -q "$DATA" "$RUN/config.yaml" ||
        stop "$root/$RUN holds a run on other data; move it away first"
}

train() {
    check_run_folder
    .venv/bin/python tools/train.py -c "$CONFIG"
    run_fingerprint >"$FINISHED"
}

first_validation_image() { say "$DATA/$(awk 'NR == 1 { print $1 }' "$DATA/val_list.txt")"; }

retrain=false
for argument in "$@"; do
    case "$argument" in
        -h | --help) usage; exit 0 ;;
        --retrain) retrain=true ;;
        *) stop "unknown argument $argument; known: --retrain, --help" ;;
    esac
done

ensure_project cpu zoo digits

.venv/bin/python scripts/prepare_digits.py "$DATA"

if "$retrain" || ! run_finished; then
    train
else
    say "$RUN holds a finished run (--retrain trains again)"
fi

best="$RUN/best_model"
image="$(first_validation_image)"
say "== evaluating $best"
.venv/bin/python tools/eval.py -c "$CONFIG" -o Global.pretrained_model="$best"
say "== classifying $image"
.venv/bin/python tools/infer.py -c "$CONFIG" -o Global.pretrained_model="$best" -o Infer.infer_imgs="$image"

cat <<END

Done. In $root:
  $best.pdparams   the best weights
  $RUN/config.yaml, train.log, metrics.jsonl   how it was trained
  $DATA   the images and their lists
  .venv   the Python environment: source .venv/bin/activate
Next, train longer on the same images:
  .venv/bin/python tools/train.py -c $CONFIG -o Global.epochs=40 -o Global.output_dir=output/longer
END
