"""The study: the pipeline for several seeds and variants, its tables and figures."""
