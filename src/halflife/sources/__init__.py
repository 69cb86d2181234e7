"""Raw log to Tables: one module and one `read` a data set."""
