"""Numba kernels: compiled, without the GIL, without Python objects, on raw addresses.

Every kernel that other modules call is declared with `jit.kernel`; `jit.warm()` compiles all of them
(or loads them from the disk cache), so that nothing is compiled on a request's path.
"""
