"""`python -m jaxrecipes` is `jaxrecipes`."""

import sys

from jaxrecipes.cli import main

sys.exit(main())
