"""How mixing, norm and ReLU run fast: in C++ on the CPU, in Triton on CUDA, and in plain PyTorch where neither can.

Nothing here knows an operator or a network; all of it may be left out of a reading of the method.
"""
