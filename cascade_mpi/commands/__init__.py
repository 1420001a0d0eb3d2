"""The commands of the command line, one a module.

Each is a function for typer that checks its options without MPI and appends what is to be run, a callable
that returns the exit status, to `context.obj`: every rank parses, then every rank runs.
"""
