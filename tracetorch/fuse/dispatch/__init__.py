"""Dispatch: select a backend for a layer, plan its kernels, and register them with PyTorch."""
