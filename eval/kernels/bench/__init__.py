"""Correctness and times of the kernels, and of whole selections: `python -m vtc.kernels.bench`.

On a GPU: each operation against its PyTorch twin in float64, then its time against the twin, against
`torch.compile` of the twin and against the floor (`floors.py`), with CUDA events and the L2 cache
flushed; then the selection of every method as a share of a 7B language model's prefill with random
weights. On the CPU (`--device cpu`, and where there is no GPU): the correctness of the twins, the
selection of every method against the prefill of the language model at the same number of tokens, and
both methods with official code against stand-ins written in its style (`standins.py`).

Shapes are LLaVA-NeXT-7B's: CLIP-L/14 at 336 pixels, a thumbnail and four crops, width 4096, 32 heads,
32 layers. `--layers` of them are run and the time is scaled to 32, linear in layers: embedding and last
norm count in every layer's favour. A selection begins at queries, keys and hidden states of the vision
tower and ends at the tokens handed on; the text tower of text-guided methods is left out, since its
result is kept for each question.
"""
