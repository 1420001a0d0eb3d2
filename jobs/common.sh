# What the job scripts share: the environment, how ranks are started, and the checks before the run.
# Sourced, with the JOB_* variables set; see jobs/workload.sbatch for what they mean.
#
# Afterwards $python is the interpreter and ${ranks[@]} starts a program on every rank of the job, bound as the
# job says. A rank that dies ends its step (--kill-on-bad-exit), whatever the site's default is: MPI would wait.

die() {
  echo "job: $*" >&2
  exit 1
}

prepare() {
  if [ -n "$JOB_MODULES" ]; then
    command -v module >/dev/null || die "JOB_MODULES is set, but this shell has no 'module' command"
    set +u  # the module systems of many sites read variables that are not set
    # shellcheck disable=SC2086  # a list of names
    module load $JOB_MODULES || die "module load $JOB_MODULES failed"
    set -u
  fi
  python=${JOB_VENV:+$JOB_VENV/bin/}python3
  command -v "$python" >/dev/null || die "there is no $python on $(hostname): create the virtual environment or set JOB_VENV"
  "$python" -c "import cascade_mpi" || die "$python cannot import cascade_mpi: pip install -e '$JOB_ROOT' there"
  [ -z "${JOB_SCRATCH:-}" ] || [ -d "$JOB_SCRATCH" ] || die "JOB_SCRATCH=$JOB_SCRATCH is no directory on $(hostname)"

  tasks=(srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}")  # srun does not take it from the job
  if [ "${SLURM_GPUS_PER_NODE:-0}" != 0 ]; then
    tasks+=(--gpus-per-node="$SLURM_GPUS_PER_NODE" --gpu-bind="${JOB_GPU_BIND:-none}")
  fi
  local plugins
  plugins=$(scontrol show config | awk '$1 == "TaskPlugin" {print $3}')
  bound=0
  case "$plugins" in
    *affinity* | *cgroup*)
      [ -z "$JOB_CPU_BIND" ] || tasks+=(--cpu-bind="$JOB_CPU_BIND")
      case "$JOB_CPU_BIND" in *none* | *no) ;; *) bound=1 ;; esac
      ;;
    *) echo "job: this Slurm binds no cores (TaskPlugin $plugins): ranks share those of their node" ;;
  esac
  ranks=("${tasks[@]}" ${JOB_MPI:+--mpi="$JOB_MPI"})
  # PyPI's MPICH 5.0 hands Slurm's pmi2 what lies in memory behind its UCX address; where that happens to be no zeros
  # the request is longer than Slurm reads, and one start in ten or so dies. Its other netmod has short addresses.
  if [ "$JOB_MPI" = pmi2 ] && [ -e "$JOB_VENV/lib/libmpi.so.12" ]; then
    export MPIR_CVAR_CH4_NETMOD=${MPIR_CVAR_CH4_NETMOD:-ofi}
  fi
}

# Every rank tells its node, cores and device; with --devices it must have one. Ends the job where ranks got in
# each other's way.
check_binding() {
  local wanted=(--tasks "$SLURM_NTASKS" "$@")
  [ "$bound" = 0 ] || wanted+=(--own-cores)
  "${tasks[@]}" --mpi=none "$python" "$JOB_ROOT/jobs/binding.py" report |
    "$python" "$JOB_ROOT/jobs/binding.py" judge "${wanted[@]}" || exit 1
}

# On all ranks, in one MPI job: what doctor calls a problem here would be one of the run.
check_doctor() {
  "${ranks[@]}" "$python" -m cascade_mpi doctor || die "doctor found a problem (exit status $?): see above what to do"
}
