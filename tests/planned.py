"""What plans in tests are made for: a machine with known rates, and a model that is traced in a second."""

from __future__ import annotations

from toolkit.planning.roofline import Rates

RATES = Rates(flops={"fp32": 1e9, "bf16": 4e9}, bandwidth=1e9, seconds_per_kernel=1e-6, source="made up")
SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2}
