"""One study per paper, in a file named after its slug; each holds `study = Study(...)`."""
