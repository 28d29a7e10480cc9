"""The rules of propagation, by kind of primitive; `registry` gathers them."""
