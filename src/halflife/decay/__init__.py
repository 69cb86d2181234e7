"""Age to log-weight: the kernel contract, then one kernel a file, named as its yaml."""
