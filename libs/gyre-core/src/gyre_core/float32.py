"""The range of float32, in which features are: every number that becomes one fits."""

FLOAT32_MAX = 3.4028234663852886e38
"""The greatest finite float32."""
