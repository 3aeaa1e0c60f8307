"""Files of sparse autoencoders: what SAELens, sparsify, dictionary_learning and Gemma Scope publish."""
