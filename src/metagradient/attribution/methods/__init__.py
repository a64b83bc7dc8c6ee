"""Methods of other papers, built on the same gradients."""
