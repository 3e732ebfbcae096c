"""Score distillation: one skeleton, many methods."""
