"""A small world of sentence pairs in which lexical overlap and a rule predict the same labels, after HANS (McCoy et al. 2019)."""
