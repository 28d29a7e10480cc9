"""Check an installed wheel, without the extras: `.ci/run` runs this outside of the repository.

`python check_wheel.py README.md` imports the library, runs the README's example, and looks for the
types and for data that should not be there.
"""

import importlib.util
import re
import sys
from pathlib import Path

import fwdgrad

package = Path(fwdgrad.__file__).parent
if "site-packages" not in package.parts:
    sys.exit(f"fwdgrad was imported from {package}, not from an installed wheel")
if not (package / "py.typed").exists():
    sys.exit("the wheel has no py.typed")
if (package / "problems" / "data").exists():
    sys.exit("the wheel has data: exclude them in pyproject.toml")
for module in ("optax", "equinox", "hydra", "pooch"):
    if importlib.util.find_spec(module) is not None:
        sys.exit(f"{module} is installed, so this does not show that JAX is enough")
try:
    import fwdgrad.problems
except ImportError as error:
    if "fwdgrad[experiments]" not in str(error):
        raise
else:
    sys.exit("fwdgrad.problems was imported without its extra")
example = re.search(r"```python\n(.*?)```", Path(sys.argv[1]).read_text("utf-8"), re.DOTALL)
exec(compile(example[1], sys.argv[1], "exec"), {})
print(f"fwdgrad {fwdgrad.__version__} works with JAX alone, and the README's example runs")
