"""Which attention a model is computed with: the backends, and the choice between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax

from jaxrecipes.errors import ConfigError
from jaxrecipes.models.attention import attention
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.cudnn import cudnn_attention, cudnn_obstacle
from jaxrecipes.models.splash import splash_attention

REFERENCE, SPLASH, CUDNN = "reference", "splash", "cudnn"

# All take what `attention` takes; the kernels also take `query_shard`, which the reference does not
# need: it reads the positions.
BACKENDS: Mapping[str, Callable[..., jax.Array]] = {
    REFERENCE: attention,
    SPLASH: splash_attention,
    CUDNN: cudnn_attention,
}
PLATFORMS = {SPLASH: "tpu", CUDNN: "gpu"}


def choose_backend(
    requested: str,
    platform: str,
    config: ModelConfig,
    compute_dtype: str,
    *,
    compute_capability: float | None = None,
) -> tuple[str, str]:
    """Chooses the attention backend of a run.

    Args:
        requested: "auto" or a key of `BACKENDS`.
        platform: Where the program runs: "cpu", "gpu" or "tpu".
        config: The model.
        compute_dtype: Name of the dtype of the forward pass.
        compute_capability: The GPU's, such as 9.0; None where there is none or it is not known.

    Returns:
        A key of `BACKENDS`, and the reason in one line.

    Raises:
        ConfigError: What was requested does not exist or cannot compute this model there.
    """
    if requested != "auto" and requested not in BACKENDS:
        raise ConfigError(
            f"model.attention: {requested!r} is no attention backend; expected auto, "
            f"{', '.join(BACKENDS)}"
        )
    natural = next((name for name, home in PLATFORMS.items() if home == platform), REFERENCE)
    chosen = natural if requested == "auto" else requested
    if chosen in PLATFORMS and platform != PLATFORMS[chosen]:
        raise ConfigError(
            f"model.attention: {chosen} runs on {PLATFORMS[chosen].upper()}, and this run is on "
            f"{platform.upper()}; use auto or reference"
        )
    if chosen == CUDNN:
        obstacle = cudnn_obstacle(
            compute_dtype, config.head_dim, config.attention_softcap, compute_capability
        )
        if obstacle is not None and requested == "auto":
            return REFERENCE, f"cudnn cannot be used: {obstacle.split(';')[0]}"
        if obstacle is not None:
            raise ConfigError(f"model.attention: cudnn cannot be used: {obstacle}")
    if requested != "auto":
        return chosen, "model.attention asks for it"
    if chosen == REFERENCE:
        return chosen, f"there is no attention kernel for {platform.upper()}"
    return chosen, f"the kernel for {platform.upper()}"
