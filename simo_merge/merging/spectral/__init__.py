"""Methods on the singular values and vectors of a matrix's task vectors."""
