#!/usr/bin/env bash
#SBATCH --job-name=esmpi
#SBATCH --partition=CHANGE_ME         # and --account, --qos as your site needs them
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
# A job script to edit for your site; es_countdown.sh and the others are the same with nothing to edit.
#   sbatch slurm/template.sh CONFIG [section.key=value ...]
# First look whether all fits: sbatch's options, then `srun esmpi doctor CONFIG` in place of the last line.

cd "${SLURM_SUBMIT_DIR:-.}" # Slurm runs a copy of this script from elsewhere

# 1. The software: modules, or a container, or both.
# module purge
# module load cuda/12.8 openmpi/5.0
# VENV=$HOME/esmpi/.venv
. slurm/common.sh || { echo "submit this from the project's folder" >&2 && exit 2; }
# The container holds esmpi, and an MPI of the kind that the host's srun speaks (see SLURM_MPI_TYPE).
# WRAP=(apptainer exec --nv --bind "$PWD,/scratch" esmpi.sif)

# 2. How ranks start. MPICH needs pmi2, Open MPI pmix; `srun --mpi=list` tells what your Slurm has.
# export SLURM_MPI_TYPE=pmix
# Where srun has neither: mpirun of the MPI that esmpi uses (one rank per slot of the allocation).
# LAUNCH=(mpirun)

# 3. Ranks and GPUs. One rank per GPU: --ntasks-per-node=8, each takes the GPU of its number on the node. One rank per
#    node: --ntasks-per-node=1 --cpus-per-task=64 and engine.tensor_parallel_size=8. Cores next to the GPUs:
# LAUNCH+=(--cpu-bind=cores --gpu-bind=none)   # none: vLLM's workers talk best when each sees all GPUs of its node

# 4. Places. Runs and the models' cache on the shared file system; caches of compilers on the node, which is faster.
# export HF_HOME=/shared/models/huggingface
local_scratch="${TMPDIR:-/tmp}/esmpi-$(id -un)" # without the job's number: the next job finds it filled
export TRITON_CACHE_DIR="$local_scratch/triton" VLLM_CACHE_ROOT="$local_scratch/vllm"
# A large model is read once per node, not once per rank, if the first rank of each node copies it:
# set -- "$@" model.stage_to="$local_scratch"

train "${@:?usage: sbatch slurm/template.sh CONFIG [section.key=value ...]}"
