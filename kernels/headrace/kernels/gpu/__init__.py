"""The operators in Triton, for CUDA and ROCm devices.

They have not run on a GPU yet. They equal the reference in Triton's
interpreter, on a CPU, and they compile for GPUs (CUDA 8.0 and 9.0, gfx942), but
neither their results there nor their speed is known, and the tile sizes are
first guesses. So `auto` does not choose them: `--kernels triton` does. On a
machine with a GPU, `bench/kernels_gpu.py` checks and measures them.
"""
