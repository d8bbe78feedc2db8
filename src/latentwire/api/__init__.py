"""What `import latentwire` offers: the commands as functions, for notebooks and scripts.

`spelling` turns names into models, wires and tasks. `compressed`, `results`, `wire_training` and `study_results`
hold one function each, with the object it returns.
"""
