"""`cascade doctor`: what this machine, its MPI and its launcher offer the store, and what to do about the rest.

A check is a function of a `Host` that yields `Finding`s; it starts no MPI. What needs MPI is asked by a
process of its own (`probe`), which may crash or hang without taking the others along. `examine` runs both,
`merge` brings the findings of all ranks together, `show` prints them.
"""
