"""Other people's modules, made functions of the step: replaced classes, substituted functions, repeated blocks."""
