"""One study a paper, in a file named after its slug; each holds ``study = Study(...)``."""
