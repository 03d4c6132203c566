"""The operators in Triton, for CUDA and ROCm devices.

The kernels are checked against the reference in Triton's interpreter, on a CPU.
They have not run on a GPU yet: neither their compilation nor their speed is
known, and the tile sizes are first guesses. `bench/kernels_gpu.py` finds both
out on a machine that has one.
"""
