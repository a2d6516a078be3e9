"""Data over time: what a git revision holds of it, how two differ, and how two people's changes become one.

In: git, dvc.lock and *.dvc, DVC's cache and remote. Out: differences, merged files, and datasets read from the remote. Begin
with `revision.Revision`, which finds a revision's data; `diff` and `merge` are the commands' work.
"""
