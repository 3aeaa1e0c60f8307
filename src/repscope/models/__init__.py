"""The network under study: named places in it, capture of activations, text in, vectors out."""
