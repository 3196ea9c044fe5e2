"""The reproduction of the paper's tables (``make reproduce``) and the studies of single factors."""
