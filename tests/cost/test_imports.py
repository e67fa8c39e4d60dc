"""Cost models answer before torch is imported."""

import pkgutil
import subprocess
import sys

import quantable.cost

MODULES = sorted(module.name for module in pkgutil.iter_modules(quantable.cost.__path__))


def test_cost_models_load_no_torch() -> None:
    assert len(MODULES) == 11  # raise this by one with each module
    imports = "; ".join(f"import quantable.cost.{name}" for name in MODULES)
    code = f"import sys; {imports}; print('torch' in sys.modules or 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
