"""Which room may import which: shown in docs/architecture.md, held by tests/unit/test_imports.py."""

BELOW = {"models", "common"}
MAY_IMPORT: dict[str, set[str]] = {
    "models": set(),
    "common": set(),
    "console": {"common"},
    "dicom": BELOW,
    "scp": {"dicom"} | BELOW,
    "gateway": {"dicom"} | BELOW,
    "gateway.cli": {"gateway", "dicom", "console"} | BELOW,
    "client": {"scp", "gateway", "dicom"} | BELOW,
    "storage": BELOW,
    "db": {"storage"} | BELOW,
    "api": {"db", "storage"} | BELOW,
    "api.cli": {"api", "db", "storage", "console"} | BELOW,
    "server": {"api", "db", "storage"} | BELOW,
}
"""By room, without itself. What stands under `__main__` is no arrow: there a door starts its command line."""
