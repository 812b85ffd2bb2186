# Sourced by the batch scripts: `step CMD...` runs a command and requeues the job if it was stopped.
#
# Slurm warns the batch shell alone (--signal=B:USR2@300), which hands the warning on; a training
# script then saves at the end of its step and exits with 75. srun makes the processes a step: what
# scancel, preemption and scontrol requeue send reaches them, and -K1 ends them all when one dies.
cd "${SLURM_SUBMIT_DIR:-.}" || exit 1
trap 'scancel --signal=USR2 "$SLURM_JOB_ID"' USR2

step() {
    srun -K1 "$@" &
    local process=$! status
    wait $process
    status=$?
    while [ $status = 140 ]; do # 128 + USR2: the trap ended the wait, not the step
        wait $process
        status=$?
    done
    if [ $status = 75 ]; then
        local job=$SLURM_JOB_ID
        [ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
        scontrol requeue "$job"
    fi
    [ $status = 0 ] || exit $status
}
