"""How a causal language model is loaded, sampled, read and differentiated.

Two ways and a gate. The fast way is our own forward pass over the weights of the loaded model, for decoders that one
description covers (`decoder`). The plain way is `model.forward` with public arguments and public caches (`plain`); it
is right for every causal LM. At first use, the gate compares a handful of tokens through both (`gate`), and a model
that the fast way does not reproduce takes the plain one.
"""
