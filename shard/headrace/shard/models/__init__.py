"""Model families, as code of our own over the operators."""
