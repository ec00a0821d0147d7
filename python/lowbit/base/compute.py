"""The arithmetic of matrix products: values of `compute` of `lowbit.matmul` and `lowbit.load`."""

#: As in src/kernels/matmul.h, whose ParseCompute reads them.
COMPUTE_MODES = ("auto", "int8", "int16", "bf16", "f32")
