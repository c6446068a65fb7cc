"""ParamΔ weight mixing: Θ'_base + Σ αᵢ (Θ_postᵢ − Θ_baseᵢ), exactly, at disk speed."""

__version__ = "0.1.0"
