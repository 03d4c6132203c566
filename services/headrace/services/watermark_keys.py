"""Reads the watermarks that an operator offers from the settings and the file that they name."""

from pathlib import Path

from headrace.contract.errors import StartupError
from headrace.contract.watermark import parse_watermark_keys
from headrace.router.watermarks import Watermarks
from headrace.services.settings import RouterOnlySettings


def load_watermarks(settings: RouterOnlySettings) -> Watermarks:
    """Returns the watermarks that requests may ask for.

    Raises:
        StartupError: the file of the keys is missing, or is not of the form that it has to have.
    """
    path = settings.watermark_key_file
    if not path:
        return Watermarks()
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"cannot read the watermark keys in {path}: {error}") from error
    keys = parse_watermark_keys(text)
    if not keys:
        raise StartupError(f"there is no watermark key in {path}")
    return Watermarks(
        keys=keys,
        gamma=settings.watermark_gamma,
        delta=settings.watermark_delta,
        is_default=settings.watermark_by_default,
    )
