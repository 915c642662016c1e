#!/usr/bin/env bash
# Train in a Slurm job, one task for each GPU. Before -- options of sbatch, behind it those of tools/train.py.
#
#     tools/slurm_train.sh --nodes 2 --ntasks-per-node 8 --gpus-per-node 8 --cpus-per-task 8 --time 1-0 \
#         -- configs/detection/cascade_convnext_t.py --data-root /data/coco --work-dir runs/a
#
# Two minutes before the time is over (--signal USR1@120), and when the job is preempted, the training writes
# a checkpoint and the job is queued again, where it goes on; a cancelled job is not. In a job array, %a in
# the options is the task's number, and without --work-dir each task has a folder of its own.
set -euo pipefail
if [ -z "${CONVNEXT_JOB:-}" ]; then
    sbatch_options=()
    while [ $# -gt 0 ] && [ "$1" != -- ]; do sbatch_options+=("$1") && shift; done
    [ $# -ge 2 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
    shift
    [ -f "$1" ] || [ -n "$(find "$(dirname "$0")/../configs" -name "$(basename "$1" .py).py" -print -quit)" ] ||
        { echo "error: no config file at $1, and none that comes along is called so: convnext configs lists them" >&2; exit 1; }
    command -v sbatch >/dev/null || { echo "error: no sbatch here: on one machine use tools/dist_train.sh" >&2; exit 1; }
    CONVNEXT_JOB=$(cd "$(dirname "$0")" && pwd)
    export CONVNEXT_JOB
    exec sbatch --requeue --open-mode=append --signal=USR1@120 --job-name="$(basename "$1" .py)" \
        "${sbatch_options[@]}" "$0" "$@"
fi

options=("${@//%a/${SLURM_ARRAY_TASK_ID:-0}}")
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ] && [[ " ${options[*]} " != *" --work-dir"[\ =]* ]]; then
    options+=(--work-dir "work_dirs/$(basename "$1" .py)/$SLURM_ARRAY_TASK_ID")
fi
trap : TERM USR1 # are for the training; this script waits for its end
status=0
srun --kill-on-bad-exit=1 python -u "$CONVNEXT_JOB/train.py" "${options[@]}" --launcher slurm || status=$?
if [ $status -eq 75 ] && scontrol show job "$SLURM_JOB_ID" | grep JobState=RUNNING >/dev/null; then
    echo "the training stopped with a checkpoint: job $SLURM_JOB_ID is queued again"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
