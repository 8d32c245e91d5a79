"""What comes with the package: the demo model, and the judges that measure it."""

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
BUNDLE = ASSETS / "demo"
JUDGES = ASSETS / "judges.safetensors"
