"""Slow pure-torch twins of every operation in splatdistill.ops: same names, same signatures."""
