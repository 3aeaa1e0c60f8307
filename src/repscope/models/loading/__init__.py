"""From a name, a folder or a GGUF file to a network whose weights are all accounted for."""
