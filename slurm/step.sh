# Sourced by the batch scripts: `step CMD...` runs a command and requeues the job if it was stopped.
#
# Slurm warns the batch shell alone (--signal=B:USR2@300), which hands the warning on; a training
# script then saves at the end of its step and exits with 75. srun makes the processes a step: what
# scancel, preemption and scontrol requeue send reaches them, and -K1 ends them all when one dies.
# The shell must outlive the SIGTERM of these, or srun dies with it and what is said last is lost;
# it is then Slurm that requeues, or not.
cd "${SLURM_SUBMIT_DIR:-.}" || exit 1
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun no longer takes this from sbatch
trap 'scancel --signal=USR2 "$SLURM_JOB_ID"' USR2
trap 'ended=yes' TERM

step() {
    srun -K1 "$@" &
    local process=$! status job=$SLURM_JOB_ID
    wait $process
    status=$?
    while kill -0 $process 2>/dev/null; do # a trap ended the wait, not the step
        wait $process
        status=$?
    done
    [ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    case $status in
        0) ;;
        75 | 140) # 140: warned before the first step
            [ -n "${ended:-}" ] || scontrol requeue "$job"
            exit $status
            ;;
        *) exit $status ;;
    esac
}
