"""What a model is, told from headers: families, hyper-parameters, roles of tensors, facts, the catalogue."""
