"""Score distillation: one skeleton, its methods, and one call from pictures to a loss."""
