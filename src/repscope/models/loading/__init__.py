"""Loading of models by name, folder or GGUF file, with a check that every weight is used."""
