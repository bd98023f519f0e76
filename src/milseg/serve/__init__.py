"""`milseg serve`: a model behind HTTP, with one page and a backend for Label Studio."""
