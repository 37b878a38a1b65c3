"""Code generation: spell kernels in LLVM IR, Triton, JavaScript and C."""
