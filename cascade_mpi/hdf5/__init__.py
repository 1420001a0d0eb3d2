"""Namespaces as HDF5 files: what such a file looks like, how it is written by one rank or by all, and how it is read.

The format and everything that touches h5py is here; the store's calls are in `store_hdf5`, the commands in
`commands.export` and `commands.import_file`. h5py is imported by the first export or import, never before.
"""
