"""A llama-server without a compiler: the server that the package xllamacpp contains, with a backend plug-in loaded into it."""
