import re
from pathlib import Path

import numpy as np
import pytest

from jaxrecipes.checkpoint import import_checkpoint
from jaxrecipes.checkpoint.random_model import write_random_model
from jaxrecipes.params import flatten, switch_off_new_blocks

README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.mark.slow
def test_the_python_example_runs_as_it_is_printed(tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.S).group(1)
    write_random_model(tmp_path / "base", "tiny-llama", seed=0)
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("HuggingFaceTB/SmolLM2-135M", "base"), "README.md", "exec"), {})
    base, trained = import_checkpoint("base"), import_checkpoint("expanded")
    assert trained.config.num_layers == 8 and trained.config.new_blocks == (3, 7)
    new = trained.params["layers"]["7"]["mlp"]["down"]["kernel"]
    assert np.abs(new).max() > 0
    # What was frozen is the base, bit for bit.
    back = flatten(switch_off_new_blocks(trained.config, trained.params)[1])
    for path, leaf in flatten(base.params).items():
        np.testing.assert_array_equal(back[path], leaf, err_msg=path)
