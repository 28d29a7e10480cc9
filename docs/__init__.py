"""The pages of the documentation, and the scripts that draw and check them."""
