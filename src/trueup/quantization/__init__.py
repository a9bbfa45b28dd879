"""Training in fewer bits: fake quantisers, and linear layers that compute with four-bit values."""

from trueup.quantization._fake_quantization import (
    fake_quantize_fp4,
    fake_quantize_int4,
    fake_quantize_int4_symmetric,
    int4_codes,
)
from trueup.quantization._quantize_linear import FakeQuantLinear, dequantize_, quantize_linear_

__all__ = [
    "FakeQuantLinear",
    "dequantize_",
    "fake_quantize_fp4",
    "fake_quantize_int4",
    "fake_quantize_int4_symmetric",
    "int4_codes",
    "quantize_linear_",
]
