"""Eviction policies: which blocks leave a cache, the same for the simulator and for the store.

`family.POLICIES` has them by name; `policy.Policy` is the contract. Everything here is compiled by Numba
when a policy is made, so neither this package nor `cascade_mpi` imports them by itself.
"""
