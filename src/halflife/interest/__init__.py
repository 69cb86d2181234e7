"""Log-weights to scores: the contract and its compositions, then one model a file, named as its yaml."""
