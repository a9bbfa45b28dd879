"""The checker of `pytest --shapes`: an int passes where a float is expected, as in mypy."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
