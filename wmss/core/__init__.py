"""The formulas: tensors and numbers in, tensors and numbers out. No I/O, no clock, no config object."""
