"""Tools around `vtc.kernels`: correctness and times, floors, compiling without a GPU."""
