"""Carries a study out on another machine: install, run, follow, bring the results home, tear down.

A launch is a folder with a record; every fact about the other machine is asked there again. So the launcher can
be killed at any time, and the same command goes on. `worker.py`, `depot.py` and `install.sh` run on the other
machine and need no more than a Python.
"""
