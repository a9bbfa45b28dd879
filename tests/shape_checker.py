"""What `pytest --shapes` checks signatures with: an int passes where a float is asked for, as in mypy."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
