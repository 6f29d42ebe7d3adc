"""Numbers that say how good a model is, each equal to the library that the field quotes."""
