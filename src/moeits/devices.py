"""Which device of torch the work is done on."""

from moeits.errors import SettingError
from moeits.extras import need


def checked_device(name: str | None) -> str:
    """A device of torch by name: the one asked for, else the first accelerator, else the CPU. Raises SettingError."""
    torch = need("torch", extra="load")
    if name is None:
        return str(torch.accelerator.current_accelerator() or "cpu") if torch.accelerator.is_available() else "cpu"
    try:
        torch.ones(1, device=name).sum().item()  # `meta` is a device that holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SettingError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from None
    return name
