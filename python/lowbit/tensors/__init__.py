"""Packed arrays in NumPy: QTensor, products, comparison, .npz files; tensors that are read row by row."""
